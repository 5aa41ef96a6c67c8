"""What an adapter is judged by, when a run ends, which state and which scale it keeps: on numbers, without a model."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from expunge.config import CalibrateConfig, UnlearnConfig
from expunge.config.criteria import Criteria
from expunge.data.sampler import Plan
from expunge.data.tokenize import TokenizedExample, evenly
from expunge.errors import RunError
from expunge.report.answers import judged
from expunge.report.scores import Score
from expunge.train.averaging import MovingAverage
from expunge.train.doubts import doubts as doubts_of
from expunge.train.early_stopping import EarlyStopping
from expunge.train.scale import MOST_SCALES, choose_scale, judge
from expunge.train.schedule import evaluation_spacing, learning_rate, make_plan, replay_tokens
from expunge.train.validation import Validation, certainty, probabilities, violation, violations

UNTOUCHED = Validation(
    scale=0.0, auc=1.0, min_k_auc=1.0, auc_sd=0.04, forget_nll=0.1, unseen_nll=2.0, exact_match=1.0,
    unseen_exact_match=0.0, retained=1.0, drift=0.0,
)  # fmt: skip
GOOD = replace(UNTOUCHED, scale=1.0, auc=0.5, min_k_auc=0.52, forget_nll=2.0, exact_match=0.0, retained=0.99)
CRITERIA = Criteria()


@pytest.mark.parametrize(
    ("name", "changed", "says"),
    [
        ("auc", {"auc": 0.6}, "membership AUC 0.60 (allowed 0.45 to 0.55)"),
        ("auc", {"auc": 0.4}, "membership AUC 0.40 (allowed 0.45 to 0.55)"),
        ("min_k_auc", {"min_k_auc": 0.7}, "membership AUC by min-k 0.70 (allowed 0.45 to 0.55)"),
        (
            "exact_match",
            {"exact_match": 0.2},
            "how surely the completions to forget are still said: 20% on average (at most 5% wanted)",
        ),
        ("retained", {"retained": 0.9}, "90.0% of the retain scores kept (at least 98% wanted)"),
        ("drift", {"drift": 0.06}, "the loss of unseen texts rose by 6.0% (at most 5% wanted)"),
    ],
)
def test_each_criterion_is_missed_by_itself(name: str, changed: dict[str, float], says: str) -> None:
    assert violation(GOOD, UNTOUCHED, CRITERIA) == 0
    found = violations(replace(GOOD, **changed), UNTOUCHED, CRITERIA)
    assert {key for key, value in found.items() if value} == {name}
    assert judge(replace(GOOD, **changed), UNTOUCHED, CRITERIA) == (False, says)


def test_while_the_auc_stays_at_one_a_higher_loss_is_progress() -> None:
    levels = [replace(UNTOUCHED, scale=1.0, forget_nll=nll) for nll in (0.1, 0.5, 1.0, 2.0)]
    sums = [violation(level, UNTOUCHED, CRITERIA) for level in levels]
    assert sums == sorted(sums, reverse=True)
    assert len(set(sums)) == 4
    _, said = judge(levels[2], UNTOUCHED, CRITERIA)
    assert "; forgotten texts have 1.00 nats per token, unseen ones 2.00; " in said


def test_what_can_be_guessed_and_what_chance_does_is_allowed() -> None:
    guessing = replace(UNTOUCHED, unseen_exact_match=0.3, auc_sd=0.15)
    assert violation(replace(GOOD, exact_match=0.3, auc=0.62, min_k_auc=0.4), guessing, CRITERIA) == 0


def test_the_sentence_on_the_criteria_says_which_aucs_are_allowed() -> None:
    few = replace(UNTOUCHED, auc_sd=0.11)
    reached, said = judge(replace(GOOD, auc=0.58, min_k_auc=0.42), few, CRITERIA)
    aucs = "membership AUC 0.58, by min-k 0.42, allowed 0.39 to 0.61"
    assert (reached, said) == (True, f"all criteria are met on the selection texts ({aucs})")
    assert judge(replace(GOOD, auc=0.62), few, CRITERIA) == (False, "membership AUC 0.62 (allowed 0.39 to 0.61)")


def test_several_attacks_on_few_texts_are_met_together_as_often_as_one() -> None:
    """Of independent normal numbers."""
    drawn = random.Random(0)
    for attacks in (1, 2, 6):
        bound = CRITERIA.auc(0.1, attacks=attacks)
        within = [all(bound.violation(drawn.gauss(0.5, 0.1)) == 0 for _ in range(attacks)) for _ in range(4_000)]
        assert sum(within) / len(within) == pytest.approx(0.683, abs=0.025), attacks
    assert CRITERIA.auc(0.1).most == pytest.approx(0.6)
    assert CRITERIA.auc(0.01, attacks=6).most == CRITERIA.auc(0.0).most == 0.55


@pytest.mark.parametrize("criteria", [Criteria(max_drift=0.0), Criteria(min_retain=1.0)])
def test_the_strictest_criteria_are_finite(criteria: Criteria) -> None:
    assert math.isfinite(violation(replace(UNTOUCHED, scale=1.0, drift=0.1, retained=0.5), UNTOUCHED, criteria))


@pytest.mark.parametrize("value", [0.44, 0.45, 0.5, 0.55, 0.56])
def test_stopping_and_the_verdict_draw_the_same_line(value: float) -> None:
    measured, untouched = replace(GOOD, auc=value), replace(UNTOUCHED, auc_sd=0.01)
    score = Score(value, key="membership/loss_auc", family="membership")
    met = violation(measured, untouched, CRITERIA) == 0
    assert met == (0.45 <= value <= 0.55)
    assert judged(score, 1.0, CRITERIA.auc(0.01), "chance", below=1.0).state == ("good" if met else "bad")


def texts() -> list[TokenizedExample]:
    return [TokenizedExample("a", [1, 2, 3, 4], 2), TokenizedExample("b", [1, 2, 3], 1)]


def test_a_completion_is_said_if_its_least_likely_token_is() -> None:
    logps = [torch.tensor([0.01, 0.9, 0.3]).log(), torch.tensor([0.6, 0.99]).log()]  # the first is of a prompt
    assert certainty(texts(), logps) == pytest.approx([0.6, 1.0])
    assert probabilities(texts(), logps) == pytest.approx([math.sqrt(0.27), math.sqrt(0.594)])
    framed = [torch.tensor([0.9, 0.8, 0.01]).log()]  # a chat template has something behind the end of text
    assert certainty([TokenizedExample("c", [1, 2, 9, 4], 1)], framed, {9}) == pytest.approx([1.0])


def test_rows_are_taken_evenly_from_every_group() -> None:
    rows = [TokenizedExample(f"{i}", [1, 2], 1, group="ab"[i % 2]) for i in range(100)]
    chosen = evenly(rows, 10)
    assert sorted(row.group for row in chosen) == ["a"] * 5 + ["b"] * 5
    assert evenly(rows, 1000) == sorted(rows, key=lambda row: row.group)


def state(value: float) -> torch.Tensor:
    return torch.tensor([value])


def test_the_best_state_is_kept_and_the_run_ends_without_improvement() -> None:
    stopping = EarlyStopping(CRITERIA, UNTOUCHED, patience=2)
    for step, nll in enumerate((0.1, 1.0, 1.5, 1.2, 1.1), start=1):
        assert stopping.over is None
        stopping.add(step, replace(UNTOUCHED, scale=1.0, forget_nll=nll), state(step))
    assert stopping.best is not None
    assert stopping.best.step == 3
    assert stopping.state == state(3)
    assert stopping.over == "nothing has become better since step 3"


def test_patience_is_not_counted_before_anything_is_forgotten() -> None:
    stopping = EarlyStopping(CRITERIA, UNTOUCHED, patience=2)
    for step in range(1, 9):
        stopping.add(step, replace(UNTOUCHED, scale=1.0, drift=0.2), state(step))
    assert stopping.over is None


def test_the_run_ends_where_all_criteria_are_met_twice_in_a_row() -> None:
    stopping = EarlyStopping(CRITERIA, UNTOUCHED, patience=8)
    line = stopping.add(4, GOOD, state(1))
    assert line["violations"] == dict.fromkeys(line["violations"], 0.0)
    assert stopping.over is None, "once may be chance"
    stopping.add(6, replace(GOOD, drift=0.2), state(2))
    stopping.add(8, GOOD, state(3))
    assert stopping.over is None
    stopping.add(10, GOOD, state(4))
    assert stopping.over == "all criteria are met 2 times in a row, at step 10"
    assert stopping.state == state(4)


def test_what_has_met_all_criteria_once_is_kept_where_nothing_follows() -> None:
    stopping = EarlyStopping(CRITERIA, UNTOUCHED, patience=2)
    stopping.add(4, GOOD, state(1))
    for step in (6, 8):
        stopping.add(step, replace(GOOD, drift=0.2), state(step))
    assert stopping.over == "nothing has become better since step 4"
    assert stopping.state == state(1)


def test_evaluation_steps_come_back_from_the_log() -> None:
    stopping, again = (EarlyStopping(CRITERIA, UNTOUCHED, patience=2) for _ in range(2))
    lines = [
        {"step": step, "validation": stopping.add(step, replace(GOOD, auc=auc), state(step))}
        for step, auc in ((1, 0.9), (2, 0.6), (3, 0.7))
    ]
    again.restore([{"step": 0}, *lines], stopping.tensors())
    assert (again.history, again.best, again.over) == (stopping.history, stopping.best, stopping.over)
    assert again.state is not None
    assert again.state == stopping.state
    with pytest.raises(RunError, match="another version"):
        again.restore([{"step": 1, "validation": {"auc": 0.5}}], {})


def validator(at: Callable[[float], Validation]) -> Any:
    asked: list[float] = []

    def measure(scale: float) -> Validation:
        asked.append(scale)
        return replace(at(scale), scale=scale)

    return SimpleNamespace(untouched=UNTOUCHED, at=measure, asked=asked)


def test_the_scale_is_where_the_auc_comes_to_its_target() -> None:
    stub = validator(lambda scale: replace(GOOD, auc=1 - 0.7 * scale, min_k_auc=1 - 0.7 * scale))
    found = choose_scale(stub, CRITERIA)
    assert found.scale == pytest.approx(5 / 7, abs=0.02)
    assert found.reached
    assert len(stub.asked) == len(set(stub.asked)) <= MOST_SCALES
    assert [metrics.scale for metrics in found.curve] == sorted({0.0, *stub.asked})


def test_of_scales_that_meet_the_criteria_that_with_the_least_sum_of_distances_is_taken_as_the_help_says() -> None:
    aucs = {0.75: (0.5, 0.54), 1.0: (0.51, 0.51)}  # the first has the better AUC by loss
    stub = validator(lambda scale: replace(GOOD, auc=aucs.get(scale, (0.7,))[0], min_k_auc=aucs.get(scale, (0.7,))[-1]))
    assert choose_scale(stub, CRITERIA).scale == 1.0
    told = " ".join((CalibrateConfig.__doc__ or "").split())
    assert "by loss and by min-k" in told
    assert "at which the sum of the two distances from it is smallest" in told


def test_an_adapter_that_does_harm_everywhere_gets_the_least_of_it_and_never_nothing() -> None:
    stub = validator(lambda scale: replace(GOOD, retained=0.9 - 0.4 * scale, auc=1.0, min_k_auc=1.0))
    found = choose_scale(stub, CRITERIA, known=[replace(GOOD, retained=0.5, auc=1.0, min_k_auc=1.0)])
    assert 0 < found.scale < 0.25
    assert not found.reached
    assert 1.0 not in stub.asked, "what is known is not measured again"


def test_no_scale_is_above_one() -> None:
    stub = validator(lambda scale: replace(GOOD, auc=1 - 0.3 * scale, min_k_auc=1 - 0.3 * scale))
    found = choose_scale(stub, CRITERIA)
    assert found.scale == max(stub.asked) == 1.0
    assert not found.reached


def test_the_average_runs_over_few_states_first_and_many_later() -> None:
    parameter = torch.zeros(1)
    averaged = MovingAverage(parameter, 4)
    for step in range(1, 101):
        parameter.fill_(100.0 if step <= 4 else 1.0)
        averaged.update(step)
        if step == 4:
            assert averaged.value.item() == 100.0, "the start, which is nothing, is forgotten"
    assert averaged.value.item() == pytest.approx(1.0, abs=1e-3)
    parameter.fill_(7.0)
    with averaged.applied():
        assert parameter.item() == pytest.approx(1.0, abs=1e-3)
    assert parameter.item() == 7.0
    none = MovingAverage(parameter, 0)
    parameter.fill_(0.1)
    none.update(1)
    assert none.value.item() == parameter.item(), "the last state, to the last bit"


def rows(count: int, length: int) -> list[TokenizedExample]:
    return [TokenizedExample(f"{i}", [1] * length, 2) for i in range(count)]


def settings(**given: Any) -> UnlearnConfig:
    return UnlearnConfig(model="m", output="o", **given)


def test_a_run_has_its_steps_whatever_the_size_of_the_forget_set() -> None:
    sides = {"forget": rows(8, 50), "retain": rows(8, 50)}
    few = make_plan(settings(recipe="npo", tokens_per_step=200), sides)
    assert few.num_steps >= 100
    assert few.epochs > 14
    assert make_plan(settings(recipe="npo", tokens_per_step=200, min_steps=0), sides).epochs == 14
    assert make_plan(settings(recipe="default", tokens_per_step=200), sides).num_steps >= 500
    assert make_plan(settings(recipe="default", tokens_per_step=200, min_steps=800), sides).num_steps >= 800
    counted = make_plan(settings(recipe="default", tokens_per_step=200, epochs=3, min_steps=0), sides)
    assert counted.epochs == 3


@pytest.mark.parametrize("evaluated", [100, 5_000, 80_000])
def test_evaluation_steps_cost_a_tenth_of_the_training_and_come_four_times_an_epoch(evaluated: int) -> None:
    plan = Plan([100] * 64, [100] * 64, epochs=9, tokens_per_step=800)
    every = evaluation_spacing(plan, evaluated, 800)
    # a forward pass is half of what a token costs in training, where the base is frozen
    assert evaluated / 2 <= 0.1 * every * 800 + 1e-6
    assert plan.steps_per_epoch / every <= 4
    assert every == math.ceil(plan.steps_per_epoch / 4) or evaluated / 2 > 0.1 * (every - 1) * 800


def test_the_learning_rate_rises_and_falls_as_it_is_told() -> None:
    def rates(**given: Any) -> list[float]:
        return [learning_rate(settings(learning_rate=0.1, warmup=0.2, **given), index, 10) for index in range(10)]

    assert rates(schedule="constant") == pytest.approx([0.05, *[0.1] * 9])
    assert rates(schedule="linear") == pytest.approx([0.05, 0.1, *(0.1 * (8 - i) / 8 for i in range(8))])
    assert rates(schedule="stable_decay") == pytest.approx([0.05, *[0.1] * 6, 0.075, 0.05, 0.025])
    falling = rates(schedule="cosine")
    assert falling[2] == pytest.approx(0.1)
    assert falling[6] == pytest.approx(0.05)
    assert falling == [falling[0], *sorted(falling[1:], reverse=True)]


def test_replay_texts_are_as_many_as_are_used_and_no_more_than_four_forget_sets() -> None:
    forget = rows(10, 30)
    assert replay_tokens(settings(replay_weight=0.0), forget, 9) == 0
    assert replay_tokens(settings(replay_weight=1.0), forget, 2) == 600
    assert replay_tokens(settings(replay_weight=1.0), forget, 50) == 1200


@pytest.mark.parametrize(("auc", "told"), [(1.0, False), (0.7, False), (0.56, True), (0.2, True)])
def test_texts_that_are_no_more_familiar_than_unseen_ones_are_doubted(auc: float, told: bool) -> None:
    """Of 30 texts a side chance has a standard deviation of .075."""
    assert doubts(auc=auc) == told * ["the untouched model finds the"]


@pytest.mark.parametrize(("said", "texts", "told"), [(1, 8, False), (2, 8, True), (3, 30, False), (4, 30, True)])
def test_unseen_texts_that_the_untouched_model_says_are_doubted(said: int, texts: int, told: bool) -> None:
    assert doubts(said=(said, texts)) == told * [f"{said} of {texts} unseen texts"]


@pytest.mark.parametrize(
    ("exact_match", "prompt", "told"), [(0.02, 5, True), (0.3, 5, False), (0.02, 0, False), (0.02, 1, False)]
)
def test_texts_to_forget_that_are_not_said_as_they_are_asked_for_are_doubted(
    exact_match: float, prompt: int, told: bool
) -> None:
    """The model may know them after other prompts; a text without a prompt is not asked for."""
    assert doubts(exact_match=exact_match, prompt=prompt) == told * ["the untouched model says next"]
    assert not doubts(exact_match=exact_match, prompt=prompt, stories=2), "most are not asked for"


def doubts(
    auc: float = 1.0, said: tuple[int, int] = (0, 0), exact_match: float = 1.0, prompt: int = 5, stories: int = 0
) -> list[str]:
    untouched = SimpleNamespace(auc=auc, auc_sd=0.075, exact_match=exact_match)
    starts = [prompt, *[1] * stories]
    rows = SimpleNamespace(forget=[SimpleNamespace(completion_start=start) for start in starts])
    validator = SimpleNamespace(untouched=untouched, unseen_said=said, rows=rows)
    return [" ".join(doubt.split()[:5]) for doubt in doubts_of(cast(Any, validator), Criteria())]
