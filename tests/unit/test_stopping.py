"""When a run stops: the shortfall, the looks, the push, and which state is kept."""

import pytest
import torch

from expunge.config.goal import Goal
from expunge.data.tokenize import TokenizedExample
from expunge.model.adapter import add_adapter, trainable
from expunge.model.load import load_model
from expunge.stopping import RAMP, REST, Selector
from expunge.strength import Selection, Signals, shortfall
from tiny import save_tiny

UNTOUCHED = Signals(0.0, 1.0, 0.1, 2.0, 0.8)


def rows(name, count, start):
    return [
        TokenizedExample(f"{name}{i}", [(start + 5 * i + 3 * j) % 90 + 3 for j in range(9)], 4) for i in range(count)
    ]


SELECTION = Selection(rows("m", 4, 0), rows("n", 4, 31), rows("r", 3, 17))


@pytest.mark.parametrize(
    ("signals", "expected"),
    [
        (Signals(1.0, 0.5, 2.0, 2.0, 0.8), 0.0),
        (Signals(1.0, 0.55, 1.9, 2.1, 0.8 * 0.98), pytest.approx((1 - 1.9 / 2.1 - 0.05) / 0.05)),
        (Signals(1.0, 0.7, 2.0, 2.0, 0.8), pytest.approx(3)),  # (.2 - .05) / .05
        (Signals(1.0, 0.3, 2.0, 2.0, 0.8), pytest.approx(3)),  # too deep counts the same
        (Signals(1.0, 0.5, 2.4, 2.4, 0.8), pytest.approx(3)),  # a drift of 20 %
        (Signals(1.0, 0.5, 2.0, 2.0, 0.8 * 0.96), pytest.approx(2)),  # two points below the floor
    ],
)
def test_shortfall_is_what_is_missing_in_tolerances(signals, expected):
    assert shortfall(signals, UNTOUCHED, Goal(0.5, 0.98, 0.05)) == expected


def after(*aucs, shortfalls=None, lacks=None, patience=2):
    """A selector that has seen these membership AUCs, by default with the shortfall that they alone make."""
    selector = Selector(SELECTION, Goal(), patience=patience)
    missing = shortfalls or [abs(auc - 0.5) * 20 for auc in aucs]
    lines = [
        {
            "step": 10 * (at + 1),
            "selection": {
                "scale": 1.0, "auc": auc, "forget_nll": 2.0 * (1 - lack), "holdout_nll": 2.0, "retain": 0.9,
                "shortfall": own,
            },
        }
        for at, (auc, own, lack) in enumerate(zip(aucs, missing, lacks or [0.5] * len(aucs), strict=True))
    ]  # fmt: skip
    selector.restore([{"step": 1}, *lines], {})
    return selector


def test_it_stops_where_the_goal_is_reached_and_not_before():
    assert after(1.0, 0.8).reason is None
    assert after(1.0, 0.5).reason == "the goal is reached"


def test_patience_begins_where_the_auc_has_come_to_the_goal():
    worse = {"shortfalls": [20, 30, 31, 32, 33]}
    assert after(1.0, 1.0, 0.99, 0.99, 0.98, **worse).reason is None  # still on the way
    assert after(1.0, 0.5, 0.4, shortfalls=[20, 5, 6]).reason is None
    found = after(1.0, 0.5, 0.4, 0.3, shortfalls=[20, 5, 6, 7])
    assert found.reason.startswith("no better state in 2 looks")
    assert found.best_step == 20


def test_the_push_follows_the_depth():
    assert Selector(SELECTION, Goal(), patience=2).push == 1
    assert after(1.0, lacks=[0.9]).push == 1
    assert after(1.0, lacks=[RAMP / 4]).push == pytest.approx(REST + 0.25)
    assert after(0.5, lacks=[0.0]).push == pytest.approx(REST)
    assert after(0.2, lacks=[-0.2]).push == 0


def test_looks_keep_the_best_state_and_a_checkpoint_brings_it_back(tmp_path):
    loaded = load_model(str(save_tiny(tmp_path, "llama")), dtype="float32", device="cpu")
    parameters = trainable(add_adapter(loaded, rank=2, alpha=None, modules="all-linear", seed=0))
    selector = Selector(SELECTION, Goal(), patience=2)
    selector.begin(loaded)
    seen = []
    for step in (1, 2, 3):
        torch.manual_seed(step)
        with torch.no_grad():
            for parameter in parameters:
                parameter.normal_(std=0.2)
        seen.append(([parameter.clone() for parameter in parameters], selector.look(loaded, parameters, step)))
    best = min(range(3), key=lambda at: seen[at][1]["shortfall"])
    assert selector.best_step == best + 1

    other = Selector(SELECTION, Goal(), patience=2)
    lines = [{"step": at + 1, "selection": own} for at, (_, own) in enumerate(seen)]
    other.restore(lines, selector.state())
    assert (other.best_step, other.reason, other.push) == (selector.best_step, selector.reason, selector.push)
    other.take_best(parameters)
    for parameter, kept in zip(parameters, seen[best][0], strict=True):
        assert torch.equal(parameter, kept)
