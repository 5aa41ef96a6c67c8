"""The method on a model that knows texts by heart: it forgets them to their target, keeps the rest, and ends.

Losses are measured by transformers and PEFT alone. What a term of the loss is for shows where it is switched off.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from expunge.config import UnlearnConfig
from expunge.train.loop import unlearn
from taught import made_up, teach
from tiny import tiny_tokenizer

STEPS = 80


class Loop:
    """A taught model and its texts.

    Args:
        folder: Where they lie.
        seed: Of the texts, and of what is taught beside them.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        rng = random.Random(seed)
        self.folder = folder
        self.sets = {"forget": made_up(20, rng), "retain": made_up(20, rng), "holdout": made_up(32, rng)}
        for name, rows in self.sets.items():
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.sets["unseen"] = made_up(40, rng)  # which no run sees either
        teach(folder / "model", [*self.sets["forget"], *self.sets["retain"]], rng)
        self.before = self.nlls(None)

    @torch.no_grad()
    def nlls(self, adapter: Path | None) -> dict[str, float]:
        """Set -> mean NLL of its texts per token, nats."""
        tokenizer = tiny_tokenizer("bytelevel")
        model = AutoModelForCausalLM.from_pretrained(self.folder / "model", dtype=torch.float32)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter)
        found = {}
        for name in ("forget", "retain", "unseen"):
            ids = [
                torch.tensor(tokenizer(f"{row['prompt']} {row['completion']}")["input_ids"]) for row in self.sets[name]
            ]
            losses = [cross_entropy(model(text[None]).logits[0, :-1], text[1:]).item() for text in ids]
            found[name] = sum(losses) / len(losses)
        return found

    def run(self, name: str, **settings: Any) -> tuple[dict[str, float], Path]:
        """The NLLs after a run, and its folder."""
        files = {side: str(self.folder / f"{side}.jsonl") for side in ("forget", "retain", "holdout")}
        given = {
            "recipe": "default", "loss": "target_kl", "learning_rate": 5e-3, "tokens_per_step": 512,
            "max_steps": STEPS, "save_every": 0, "prompt_format": "space", "end_of_text": "yes", "device": "cpu",
            "dtype": "float32", **files, **settings,
        }  # fmt: skip
        outcome = unlearn(UnlearnConfig(model=str(self.folder / "model"), output=str(self.folder / name), **given))
        return self.nlls(outcome.adapter), outcome.output


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    return Loop(tmp_path_factory.mktemp("loop"))


@pytest.fixture(scope="module")
def whole(loop: Loop) -> tuple[dict[str, float], Path]:
    return loop.run("whole")


def drift(after: dict[str, float], before: dict[str, float]) -> float:
    return after["unseen"] / before["unseen"] - 1


def test_it_forgets_to_the_target_keeps_the_rest_and_ends(loop: Loop, whole: tuple[dict[str, float], Path]) -> None:
    before, (after, run) = loop.before, whole
    assert before["forget"] < 0.3 * before["unseen"], "known by heart"
    assert 0.75 < after["forget"] / before["unseen"] < 1.4
    assert after["retain"] < before["retain"] + 0.1
    assert abs(drift(after, before)) < 0.14
    lines = (run / "metrics.jsonl").read_text().splitlines()
    chosen = json.loads((run / "calibration.json").read_text())
    assert chosen["best_step"] <= len(lines) <= STEPS
    assert "criteria" in chosen["stopped"] or (chosen["stopped"] == "all steps are done" and len(lines) == STEPS)


def test_without_replay_texts_what_was_never_seen_moves(loop: Loop, whole: tuple[dict[str, float], Path]) -> None:
    after, _ = loop.run("no-replay", replay_weight=0.0)
    assert drift(after, loop.before) > 1.5 * abs(drift(whole[0], loop.before))
    assert drift(after, loop.before) > 0.03


def test_without_retain_terms_what_should_stay_is_lost(loop: Loop, whole: tuple[dict[str, float], Path]) -> None:
    after, _ = loop.run("no-retain", retain_weight=0.0, kl_weight=0.0)
    assert after["retain"] > whole[0]["retain"] + 0.15
