"""What an adapter is judged by: signals of a scale, and what of the retain set is kept."""

import math
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from statistics import pstdev
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel

from expunge.data.tokenize import TokenizedExample
from expunge.model.adapter import add_adapter, scaled
from expunge.model.load import load_model
from expunge.model.logps import sequence_logps
from expunge.train import validation as signals
from expunge.train.validation import Meter, Selection, certainty, evenness, kept
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


SELECTION = Selection(
    rows("m", (9, 12, 7)), rows("n", (8, 11), 40), rows("r", (10, 6, 7, 9), 20), rows("f", (5, 8), 60)
)


def test_signals_are_their_definitions(adapted):
    found = Meter(adapted, SELECTION).at(0.5)
    texts = (*SELECTION.members, *SELECTION.nonmembers, *SELECTION.retain, *SELECTION.forget)
    with scaled(adapted.model, 0.5):
        alone = {row.id: sequence_logps(adapted, [row.input_ids])[0] for row in texts}
    losses = {name: -values.mean().item() for name, values in alone.items()}
    members, others = ([losses[row.id] for row in side] for side in (SELECTION.members, SELECTION.nonmembers))
    pairs = [(a < b) + 0.5 * (a == b) for a in members for b in others]
    kept = [math.exp(alone[row.id][row.completion_start - 1 :].mean().item()) for row in SELECTION.retain]
    assert found.auc == pytest.approx(sum(pairs) / len(pairs))
    by_chance = [sum(a < b for a in own for b in range(5) if b not in own) / 6 for own in combinations(range(5), 3)]
    assert found.auc_sd == pytest.approx(pstdev(by_chance))
    assert found.forget_nll == pytest.approx(sum(members) / 3, rel=1e-5)
    assert found.holdout_nll == pytest.approx(sum(others) / 2, rel=1e-5)
    assert found.retain == pytest.approx(sum(kept) / 4, rel=1e-5)
    tails = [-own.sort().values[: max(1, len(own) // 5)].mean().item() for own in list(alone.values())[:5]]
    assert found.forget_tail == pytest.approx(sum(tails[:3]) / 3, rel=1e-5)
    assert found.holdout_tail == pytest.approx(sum(tails[3:]) / 2, rel=1e-5)
    for side, share in ((SELECTION.forget, found.said), (SELECTION.nonmembers, found.guessed)):
        least = [math.exp(alone[row.id][row.completion_start - 1 :].min().item()) for row in side]
        assert share == pytest.approx(sum(min(1, 2 * own) for own in least) / 2, rel=1e-5)
        assert share > 0
    spread = [sum(tails[:3]) / sum(losses[row.id] for row in SELECTION.members), found.holdout_tail / found.holdout_nll]
    assert evenness(found) == pytest.approx(1 - spread[0] / spread[1], rel=1e-4)


@pytest.mark.parametrize("together", [False, True])
def test_what_one_task_gains_does_not_make_up_for_what_another_loses(monkeypatch, together):
    texts = [replace(own, group="Task1 qa" if together else own.id) for own in rows("r", (4, 4, 4), 20)]
    values = {0.0: (0.9, 0.3, 0.1), 1.0: (0.3, 0.9, 0.9), 0.5: (0.6, 0.3, 0.1)}  # of every token of each text

    def logps(loaded, ids, processes):
        found = values[loaded.model]
        return [torch.full((len(own) - 1,), found[at % 3]).log() for at, own in enumerate(ids)]

    @contextmanager
    def at_scale(model, scale):
        loaded.model = scale
        yield

    loaded = SimpleNamespace(model=None, tokenizer=SimpleNamespace(eos_token_id=None))
    monkeypatch.setattr(signals, "sequence_logps", logps)
    monkeypatch.setattr(signals, "scaled", at_scale)
    meter = Meter(loaded, Selection(rows("m", (3, 3)), rows("n", (3,), 40), texts, []))
    found = {scale: meter.at(scale) for scale in (0.5, 1.0)}
    assert meter.untouched.lost == 0
    gained = 0.4 if together else 0.0  # by the second; the third was not said before, so it makes up for nothing
    assert found[1.0].lost == pytest.approx(max(0, 1 - 0.6 - gained) / 3)
    assert found[0.5].lost == 0  # less likely, and greedy decoding still says it
    assert kept(found[1.0], meter.untouched) == pytest.approx(1 - found[1.0].lost)  # though the mean is higher
    assert kept(found[0.5], meter.untouched) == pytest.approx(1.0 / 1.3)


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
