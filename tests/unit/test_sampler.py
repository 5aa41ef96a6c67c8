"""Steps keep mix and budget, epochs cover the forget set, micro-batches pad little, all follows the seed."""

import random

import pytest

from expunge.data.sampler import Plan, Size, micro_batches, size_of

rng = random.Random(5)
FORGET = [rng.choice([20, 30, 120, 300, 450]) + rng.randint(0, 20) for _ in range(254)]
RETAIN = [rng.choice([20, 30, 120, 300, 450]) + rng.randint(0, 20) for _ in range(301)]


def plan(**options):
    return Plan(FORGET, RETAIN, **{"epochs": 3, "tokens_per_step": 2048, "seed": 1} | options)


def tokens(lengths, rows):
    return sum(lengths[row] for row in rows)


def test_every_epoch_passes_over_the_forget_set_once():
    steps = list(plan().steps())
    assert len(steps) == plan().num_steps
    for epoch in range(3):
        rows = [row for step in steps if step.epoch == epoch for row in step.forget]
        assert sorted(rows) == list(range(len(FORGET)))


def test_a_run_has_its_least_steps_and_whole_epochs():
    few = plan(epochs=2, least_steps=500)
    assert 500 <= few.num_steps < 500 + few.steps_per_epoch
    assert few.num_steps % few.steps_per_epoch == 0
    assert len(list(few.steps())) == few.num_steps
    assert plan(least_steps=10).num_steps == plan().num_steps


def test_the_retain_set_goes_on_through_the_epochs():
    rows = [row for step in plan(epochs=8).steps() for row in step.retain]
    passes, rest = divmod(len(rows), len(RETAIN))
    assert passes >= 1
    for turn in range(passes):
        assert sorted(rows[turn * len(RETAIN) : (turn + 1) * len(RETAIN)]) == list(range(len(RETAIN)))
    assert len(set(rows[len(rows) - rest :])) == rest


@pytest.mark.parametrize("retain", [RETAIN[:60], RETAIN, RETAIN * 3])
def test_every_step_has_all_sides_in_proportion(retain):
    schedule = Plan(FORGET, retain, epochs=3, tokens_per_step=8192, replay_lengths=RETAIN, seed=1)
    expected = sum(retain) / sum(FORGET)
    assert schedule.retain_per_forget == pytest.approx(expected)
    forget_so_far = retain_so_far = replay_so_far = 0
    for step in schedule.steps():
        forgotten, kept, replayed = (
            tokens(FORGET, step.forget),
            tokens(retain, step.retain),
            tokens(RETAIN, step.replay),
        )
        assert forgotten
        assert kept
        forget_so_far, retain_so_far = forget_so_far + forgotten, retain_so_far + kept
        replay_so_far += replayed
        # within half a row on either side, at every moment
        assert abs(retain_so_far - expected * forget_so_far) <= max(RETAIN) / 2 + 1
        assert abs(replay_so_far - forget_so_far) <= max(RETAIN) / 2 + 1
        assert forgotten + kept <= 8192 + max(FORGET) * (1 + expected) + max(RETAIN)


@pytest.mark.parametrize("options", [{"tokens_per_step": 1024}, {"rows_per_step": 8}])
def test_a_large_retain_set_does_not_burst_the_budget(options):
    """An epoch sees a part of it, and those after it the rest."""
    schedule = Plan([40] * 10, [40] * 1000, epochs=40, **{"tokens_per_step": 1024} | options)
    assert schedule.steps_per_epoch == 10
    steps = list(schedule.steps())
    budget = options.get("rows_per_step") or options["tokens_per_step"] / 40
    assert all(len(step.forget) == 1 and len(step.retain) <= budget for step in steps)
    rows = [row for step in steps for row in step.retain]
    assert len(set(rows)) == 1000


def test_what_to_say_instead_comes_once_an_epoch_on_top():
    lengths = [7 + row % 30 for row in range(300)]
    schedule = plan(instead_lengths=lengths)
    assert schedule.steps_per_epoch == plan().steps_per_epoch
    rows = [row for step in schedule.steps() for row in step.instead]
    assert len(rows) in range(3 * len(lengths) - 3, 3 * len(lengths) + 4)
    assert sorted(rows[: len(lengths)]) == list(range(len(lengths)))
    assert [step.forget for step in schedule.steps()] == [step.forget for step in plan().steps()]


def test_a_step_costs_about_its_budget():
    sizes = [tokens(FORGET, step.forget) + tokens(RETAIN, step.retain) for step in plan(tokens_per_step=4096).steps()]
    assert 0.85 * 4096 < sum(sizes) / len(sizes) <= 4096 * 1.05


@pytest.mark.parametrize("budget", ["tokens_per_step", "rows_per_step"])
def test_a_budget_beyond_all_texts_makes_one_step_of_an_epoch(budget):
    steps = list(plan(epochs=2, **{budget: 10**15}).steps())
    assert [sorted(step.forget) for step in steps] == [list(range(len(FORGET)))] * 2


def test_rows_per_step_counts_rows():
    steps = list(Plan(FORGET, RETAIN[: len(FORGET)], epochs=1, tokens_per_step=1, rows_per_step=4).steps())
    assert {len(step.forget) for step in steps} == {2}
    assert {len(step.retain) for step in steps} == {2}


def test_the_seed_fixes_the_order_and_another_seed_changes_it():
    assert list(plan().steps()) == list(plan().steps())
    assert list(plan().steps()) != list(plan(seed=2).steps())
    by_epoch = [[step.forget for step in plan().steps() if step.epoch == epoch] for epoch in range(2)]
    assert by_epoch[0] != by_epoch[1]


def test_without_retain_rows():
    steps = list(Plan(FORGET, [], epochs=1, tokens_per_step=1024).steps())
    assert all(step.forget and not step.retain for step in steps)


@pytest.mark.parametrize("sizes", [([7], [9]), ([500], [3, 4]), ([5, 5], [900])])
def test_tiny_sets(sizes):
    steps = list(Plan(*sizes, epochs=2, tokens_per_step=64).steps())
    assert all(step.forget and step.retain for step in steps)
    assert sum(len(step.forget) for step in steps) == 2 * len(sizes[0])


@pytest.mark.parametrize("budget", [512, 1024, 4096])
def test_micro_batches_hold_every_row_once_and_pad_little(budget):
    area = real = 0
    for step in plan(tokens_per_step=budget).steps():
        lengths = [FORGET[row] for row in step.forget] + [RETAIN[row] for row in step.retain]
        groups = micro_batches(lengths, 4096)
        assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
        for group in groups:
            padded = max(lengths[row] for row in group) * len(group)
            assert padded <= 4096 or len(group) == 1
            area, real = area + padded, real + tokens(lengths, group)
        assert size_of(lengths, 4096).area <= tokens(lengths, range(len(lengths))) / 0.95
    assert real / area >= 0.95


@pytest.mark.parametrize("budget", [512, 1024, 4096])
def test_packed_micro_batches_are_filled(budget):
    groups = micro_batches(FORGET, budget, packed=True)
    assert sorted(row for group in groups for row in group) == list(range(len(FORGET)))
    sizes = [tokens(FORGET, group) for group in groups]
    assert max(sizes) <= budget
    assert all(size + max(FORGET) > budget for size in sizes[:-1])  # the next row would not have fitted
    assert size_of(FORGET, budget, packed=True).area == sum(FORGET)
    assert micro_batches([9, 5], 4, packed=True) == [[0], [1]]


def test_size_counts_the_padded_area_of_the_micro_batches():
    assert size_of([10, 10, 10], 20) == Size(tokens=30, area=30, largest=20)
    assert size_of([100, 97], 1000) == Size(tokens=197, area=200, largest=200)
    assert size_of([100, 10], 1000) == Size(tokens=110, area=110, largest=100)  # apart: too much padding together
    assert size_of([100, 10], 1000, packed=True) == Size(tokens=110, area=110, largest=110)


def test_very_many_steps():
    count = sum(1 for _ in Plan([5] * 20, [5] * 3, epochs=10_000, tokens_per_step=20).steps())
    assert count >= 50_000
