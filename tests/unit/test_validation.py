"""The metrics of an evaluation step against transformers and PEFT, pairs of texts counted one by one."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from expunge.data.tokenize import TokenizedExample
from expunge.model.saved import save_adapter
from expunge.train.trainer import Trainer
from expunge.train.validation import ValidationRows, Validator, by_heart, certainty
from tiny import save_tiny
from training import made_up, moved, prepared

SCALE = 0.7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("validation") / "model", "llama")


@torch.no_grad()
def plain_logps(folder: Path, adapter: Path | None, rows: Sequence[TokenizedExample]) -> list[torch.Tensor]:
    """`(tokens - 1,)` for each row, with the adapter times `SCALE`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.mul_(SCALE)
    found = []
    for row in rows:
        ids = torch.tensor([row.input_ids])
        found.append(model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].double())
    return found


def share_of_wins(members: list[float], nonmembers: list[float]) -> float:
    wins = [(m > n) + 0.5 * (m == n) for m in members for n in nonmembers]
    return sum(wins) / len(wins)


def least_fifth(logps: torch.Tensor) -> float:
    count = max(1, int(0.2 * len(logps)))
    return logps.sort().values[:count].mean().item()


def completion(row: TokenizedExample, logps: torch.Tensor) -> torch.Tensor:
    return logps[max(1, row.completion_start) - 1 :]


def test_metrics_are_those_of_transformers_and_peft(folder: Path, tmp_path: Path) -> None:
    members, nonmembers, retain, forget = (made_up(9 + seed, seed, longest=30) for seed in range(4))
    trainer = moved(Trainer(prepared(folder, forget=members, retain=retain)), size=0.1)
    validator = Validator(trainer.loaded, ValidationRows(members, nonmembers, retain, forget))
    scaled, untouched = validator.at(SCALE), validator.untouched
    save_adapter(trainer.loaded, tmp_path)
    for found, adapter in ((scaled, tmp_path), (untouched, None)):
        logps = [plain_logps(folder, adapter, rows) for rows in (members, nonmembers, retain, forget)]
        means, tails = (
            [[f(text) for text in side] for side in logps[:2]] for f in (lambda t: t.mean().item(), least_fifth)
        )
        assert found.auc == pytest.approx(share_of_wins(*means))
        assert found.min_k_auc == pytest.approx(share_of_wins(*tails))
        assert found.forget_nll == pytest.approx(-sum(means[0]) / len(members), rel=1e-4)
        assert found.unseen_nll == pytest.approx(-sum(means[1]) / len(nonmembers), rel=1e-4)
        least = [completion(row, text).min().exp().item() for row, text in zip(forget, logps[3], strict=True)]
        assert found.exact_match == pytest.approx(sum(min(1, 2 * p) for p in least) / len(forget), rel=1e-3)
    assert untouched.drift == 0
    assert untouched.retained == 1
    assert scaled.drift == pytest.approx(scaled.unseen_nll / untouched.unseen_nll - 1)
    assert abs(scaled.drift) > 1e-3
    said = [
        sum(completion(row, text).mean().exp().item() for row, text in zip(retain, logps, strict=True))
        for logps in (plain_logps(folder, adapter, retain) for adapter in (tmp_path, None))
    ]
    assert scaled.retained == pytest.approx(min(1.0, said[0] / said[1]), rel=1e-3)
    # of numbers that nothing tells apart: every order is as likely (Mann and Whitney 1947)
    assert scaled.auc_sd == pytest.approx(math.sqrt((9 + 10 + 1) / (12 * 9 * 10)))


def test_the_adapter_is_left_as_it_was(folder: Path) -> None:
    rows = made_up(8)
    trainer = moved(Trainer(prepared(folder, forget=rows, retain=rows)))
    validator = Validator(trainer.loaded, ValidationRows(rows, made_up(8, 1), [], rows))
    first = validator.at(1.0)
    assert validator.at(0.3) != first
    assert validator.at(1.0) == first
    assert validator.at(0.0) == validator.untouched
    assert first.retained == 1, "there is nothing to lose"


def test_unseen_texts_known_by_heart_are_those_that_cannot_be_guessed() -> None:
    def row(start: int, *ids: int) -> TokenizedExample:
        return TokenizedExample("", [1, *ids], start)

    answer, other, short = row(3, 2, 3, *range(10, 16)), row(3, 2, 3, *range(20, 26)), row(3, 2, 3, 4)
    same = [row(3, 2, at, *range(30, 36)) for at in (3, 4)]  # of a category
    alone = row(1, *range(40, 52))  # nobody guesses its first half
    rows = [answer, other, short, *same, alone]
    sure = [torch.full((len(example) - 1,), math.log(0.6)) for example in rows]
    sure[1][-1] = sure[5][3] = math.log(0.4)
    assert by_heart(rows, sure, [], 1) == (2, 3)
    assert by_heart(rows, sure, [answer], 1) == (1, 2)
    assert by_heart([], [], [], 1) == (0, 0)
    named = [row(4, 2, at, 3, *range(30, 36), at, 50) for at in (60, 61)]  # of one template, about two
    sure = [torch.full((len(example) - 1,), math.log(0.6)) for example in named]
    assert by_heart(named, sure, [], 1) == by_heart(named[:1], sure[:1], named[1:], 1) == (0, 0)
    many = [row(3, 2, 3, *(200 + at, *range(7))) for at in range(999)]
    assert len(ValidationRows.of([], [], many, many).others) == 2 * 999, "not of a sample"


def test_of_completions_that_were_said_the_share_that_is_kept_counts() -> None:
    """Not of all rows: where a model says ten of a hundred and two of these are lost, eight tenths are kept."""
    rows = [TokenizedExample(str(at), list(range(1, 13)), 2) for at in range(100)]

    def logps(said: bool, lost: bool) -> torch.Tensor:
        values = torch.full((11,), math.log(0.95))
        values[5] = math.log(0.01 if lost else 0.95 if said else 0.2)
        return values

    before, after = ([logps(at < 10, now and at < 2) for at in range(100)] for now in (False, True))
    validator = object.__new__(Validator)
    validator.rows, validator._ends = ValidationRows([], [], rows, []), frozenset()
    validator._certain, validator._probability = certainty(rows, before), 1e-9
    assert validator._retained(before) == 1
    assert validator._retained(after) == pytest.approx(0.8, abs=0.01)


def test_what_can_be_guessed_of_a_kind_is_that_of_unseen_texts_of_this_kind() -> None:
    """Three answers and a document are to be forgotten; answers can be guessed, documents cannot."""

    def rows(kind: str, count: int) -> list[TokenizedExample]:
        return [TokenizedExample(str(at), list(range(1, 13)), 2, group=kind) for at in range(count)]

    validator = object.__new__(Validator)
    forget = [*rows("answer", 3), *rows("document", 1)]
    validator.rows, validator._ends = (
        ValidationRows.of([], rows("document", 8), [], forget, rows("answer", 8)),
        frozenset(),
    )
    logps = [torch.full((11,), math.log(share)) for share in [0.05] * 8 + [0.4] * 8]
    assert validator._guessed(logps) == pytest.approx(0.75 * 0.8 + 0.25 * 0.1)
    validator.rows = ValidationRows([], rows("document", 8), [], rows("other", 1))
    assert validator._guessed(logps[:8]) == pytest.approx(0.1), "of a kind without unseen texts"
    validator.rows = ValidationRows([], rows("document", 8), [], forget, rows("answer", 7))
    assert validator._guessed(logps[:15]) == pytest.approx(0.75 * (8 * 0.1 + 7 * 0.8) / 15 + 0.25 * 0.1), "of few"
