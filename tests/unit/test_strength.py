"""The dial: signals of a scale, the search over scales, and the halves of the membership texts."""

import math
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel

from expunge import strength
from expunge.config.goal import Goal
from expunge.data.examples import Example
from expunge.data.tokenize import TokenizedExample
from expunge.model.adapter import add_adapter
from expunge.model.load import load_model
from expunge.model.logps import sequence_logps
from expunge.selection import example_hashes, marks, selection_half, without_selection
from expunge.strength import (
    REACHED,
    Meter,
    Selection,
    Signals,
    certainty,
    choose,
    evenness,
    kept,
    misfit_at,
    number_of_looks,
    scaled,
    shortfall,
)
from tiny import save_tiny


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    loaded = load_model(str(save_tiny(tmp_path_factory.mktemp("model"), "llama")), dtype="float32", device="cpu")
    model = add_adapter(loaded, rank=2, alpha=None, modules="all-linear", seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return loaded


def rows(name, lengths, start=0):
    return [
        TokenizedExample(f"{name}{i}", [(start + 7 * i + 3 * j) % 90 + 3 for j in range(length)], length // 2)
        for i, length in enumerate(lengths)
    ]


SELECTION = Selection(rows("m", (9, 12, 7)), rows("n", (8, 11), 40), rows("r", (10, 6, 7, 9), 20))


def test_signals_are_their_definitions(adapted):
    found = Meter(adapted, SELECTION).at(0.5)
    texts = (*SELECTION.members, *SELECTION.nonmembers, *SELECTION.retain)
    with scaled(adapted.model, 0.5):
        alone = {row.id: sequence_logps(adapted, [row.input_ids])[0] for row in texts}
    losses = {name: -values.mean().item() for name, values in alone.items()}
    members, others = ([losses[row.id] for row in side] for side in (SELECTION.members, SELECTION.nonmembers))
    pairs = [(a < b) + 0.5 * (a == b) for a in members for b in others]
    kept = [math.exp(alone[row.id][row.completion_start - 1 :].mean().item()) for row in SELECTION.retain]
    assert found.auc == pytest.approx(sum(pairs) / len(pairs))
    assert found.forget_nll == pytest.approx(sum(members) / 3, rel=1e-5)
    assert found.holdout_nll == pytest.approx(sum(others) / 2, rel=1e-5)
    assert found.retain == pytest.approx(sum(kept) / 4, rel=1e-5)
    tails = [-own.sort().values[: max(1, len(own) // 5)].mean().item() for own in list(alone.values())[:5]]
    assert found.forget_tail == pytest.approx(sum(tails[:3]) / 3, rel=1e-5)
    assert found.holdout_tail == pytest.approx(sum(tails[3:]) / 2, rel=1e-5)
    spread = [sum(tails[:3]) / sum(losses[row.id] for row in SELECTION.members), found.holdout_tail / found.holdout_nll]
    assert evenness(found) == pytest.approx(1 - spread[0] / spread[1], rel=1e-4)


def test_what_one_completion_gains_does_not_make_up_for_what_another_loses(monkeypatch):
    texts = rows("r", (4, 4), 20)
    values = {0.0: (0.9, 0.2), 1.0: (0.3, 0.9), 0.5: (0.6, 0.2)}  # of every token of each text

    def logps(loaded, ids, processes):
        found = values[loaded.model]
        return [torch.full((len(own) - 1,), found[at % 2]).log() for at, own in enumerate(ids)]

    @contextmanager
    def at_scale(model, scale):
        loaded.model = scale
        yield

    loaded = SimpleNamespace(model=None, tokenizer=SimpleNamespace(eos_token_id=None))
    monkeypatch.setattr(strength, "sequence_logps", logps)
    monkeypatch.setattr(strength, "scaled", at_scale)
    meter = Meter(loaded, Selection(rows("m", (3, 3)), rows("n", (3, 3), 40), texts))
    found = {scale: meter.at(scale) for scale in (0.5, 1.0)}
    assert meter.untouched.lost == 0
    assert found[1.0].lost == pytest.approx((1 - 0.6) / 2)
    assert found[0.5].lost == 0  # less likely, and greedy decoding still says it
    assert kept(found[1.0], meter.untouched) == pytest.approx(0.8)  # though the mean probability is higher
    assert kept(found[0.5], meter.untouched) == pytest.approx(0.8 / 1.1)


def test_a_completion_is_said_if_its_least_likely_token_is():
    texts = [TokenizedExample("a", [1, 2, 3, 4], 2), TokenizedExample("b", [1, 2, 3], 1)]
    logps = [torch.tensor([0.01, 0.9, 0.3]).log(), torch.tensor([0.6, 0.99]).log()]  # the first is of a prompt
    assert certainty(texts, logps) == pytest.approx([0.6, 1.0])
    framed = [torch.tensor([0.9, 0.8, 0.01]).log()]  # a chat template has something behind the end of text
    assert certainty([TokenizedExample("c", [1, 2, 9, 4], 1)], framed, end=9) == pytest.approx([1.0])


def test_strength_0_is_the_untouched_model_and_1_the_trained_one(adapted):
    ids = [row.input_ids for row in SELECTION.members]
    trained = sequence_logps(adapted, ids)
    with scaled(adapted.model, 0.0):
        silent = sequence_logps(adapted, ids)
    assert isinstance(adapted.model, PeftModel)
    with adapted.model.disable_adapter():
        untouched = sequence_logps(adapted, ids)
    for one, other in zip(silent, untouched, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(sequence_logps(adapted, ids), trained, strict=True):
        assert torch.equal(one, other)  # and the scale is as it was
    assert any((one - other).abs().max() > 0.1 for one, other in zip(trained, untouched, strict=True))


class Curve:
    """A meter whose signals are a function of the scale."""

    def __init__(self, signals):
        self.signals, self.untouched, self.looked = signals, signals(0.0), []

    def at(self, scale):
        self.looked.append(scale)
        return self.signals(scale)


def search(signals, target=Goal(), known=(), weighed=False):  # noqa: B008
    curve = Curve(signals)
    found = choose(curve, target, known=known, weighed=weighed)
    assert not {0.0, *(own.scale for own in known)} & set(curve.looked)
    assert len(curve.looked) == len(set(curve.looked)) <= number_of_looks()
    return found


def test_the_search_finds_the_target_between_the_first_scales():
    found = search(lambda s: Signals(s, 1 - s / 2.2, 1 + s, 5.0, 0.9))
    assert found.reached
    assert found.scale == pytest.approx(1.1, abs=0.04)
    assert found.curve == sorted(found.curve, key=lambda own: own.scale)
    assert found.at(found.scale).auc == pytest.approx(0.5, abs=0.02)


def test_what_was_measured_already_is_not_measured_again():
    def curve(scale):
        return Signals(scale, 1 - scale / 2.2, 1 + scale, 5.0, 0.9)

    assert search(curve, known=[curve(1.0)]) == search(curve)


def test_a_bound_stops_it_and_the_verdict_names_the_bound():
    found = search(lambda s: Signals(s, 1 - s / 2.2, 1 + s, 5.0 * (1 + 0.099 * s), 0.9))
    assert not found.reached
    assert found.scale == pytest.approx(0.505, abs=0.004)  # a drift of 5 %
    assert "unseen selection texts by" in found.verdict
    assert "ceiling 5.0%" in found.verdict

    found = search(lambda s: Signals(s, 1 - s / 2.2, 1 + s, 5.0, 1 - 0.04 * s))
    assert found.scale == 0.75
    assert "floor 97.0%" in found.verdict

    found = search(lambda s: Signals(s, 1 - s / 2.2, 1 + s, 5.0, 0.9 + 0.04 * s, lost=0.04 * s))
    assert found.scale == 0.75  # more likely than before, and not all of it is said any more
    assert "keeps 96.9% of the retain set (floor 97.0%)" in found.verdict


def test_where_no_scale_gets_away_from_1_the_strongest_within_the_bounds_wins():
    found = search(lambda s: Signals(s, 1.0, 1 + s, 5.0 * (1 + 0.0399 * s), 0.9))
    assert (found.reached, found.scale) == (False, 1.25)
    assert "no scale up to 2 comes closer" in found.verdict


def test_weighed_it_takes_the_middle_of_the_tolerance_and_gives_nothing_for_it():
    def steep(scale, drift=0.0, lost=0.0):  # near 1 the AUCs fall by a tolerance in a hundredth of the strength
        fall = min(0.5, max(-0.5, 5 * (scale - 1)))
        drift, lost = (max(0.0, at + 2 * (scale - 1)) for at in (drift, lost))
        return Signals(scale, 0.53 - fall, 5 + scale, 5.0 * (1 + drift), 0.9, 0.51 - fall, lost=lost)

    assert search(steep, weighed=True).scale == pytest.approx(1.004, abs=0.002)  # .51 and .49
    untouched, goal = steep(0.0), Goal(0.5, 0.98, 0.05)
    for at in ({"drift": 0.045}, {"lost": 0.02}):  # as much as is aimed at, and more with more strength
        assert shortfall(steep(1.0, **at), untouched, goal) == 0
        found = search(lambda scale, at=at: steep(scale, **at), goal, weighed=True)
        assert shortfall(found.at(found.scale), untouched, goal) <= misfit_at(found, goal) <= REACHED

    def harmful(scale):  # the AUC would be right at twice the strength, at a drift of 100 %
        return Signals(scale, 1.0 - 0.25 * scale, 1.0 + 2 * scale, 5.0 * (1 + 0.5 * scale), 0.9, 0.5)

    assert search(harmful, weighed=True).scale < 0.3


def test_an_adapter_that_harms_at_any_strength_is_switched_off():
    found = search(lambda s: Signals(s, 1 - s / 2.2, 1 + s, 5.0 * (1 + 20 * s), 0.9))
    assert found.scale == 0.0


def test_halves_depend_on_the_texts_alone():
    texts = [f"text {i}" for i in range(21)] + ["text 3"]
    chosen = {text for text, own in zip(texts, selection_half(texts), strict=True) if own}
    assert len(chosen) == 10
    backwards = texts[::-1]
    assert {text for text, own in zip(backwards, selection_half(backwards), strict=True) if own} == chosen


@pytest.mark.parametrize("count", [8, 60, 3000])
def test_marks_tell_the_selection_from_all_but_few_and_tell_nobody_a_number(count):
    """Whoever knows all but the number finds it among one in 256, where the whole hash would single it out."""
    texts = [Example(f"t{i}", "Her number is", f"{5550000 + i}.") for i in range(count + 40_000)]
    looked_at, others = texts[:count], texts[count:]
    own = {"selection_sha256": marks(example_hashes(looked_at))}
    assert without_selection(looked_at, own) == []
    wrongly = 1 - len(without_selection(others, own)) / len(others)
    assert 1 / 256 / 16 / 3 < wrongly < 1 / 256 * 1.5
