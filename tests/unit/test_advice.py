"""What a run says of its model's answers: over-refusal and babble are told once with what mends them, nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.config import UnlearnConfig
from expunge.data.examples import Example
from expunge.data.tokenize import PromptFormat, tokenize_all
from expunge.evaluation import advice
from expunge.evaluation.advice import LONG, Advisor
from expunge.train.loop import unlearn
from expunge.train.trainer import Trainer
from expunge.utils.progress import Reporter
from tiny import save_tiny
from training import made_up, prepared

FINE, REFUSED, BABBLE = (
    "The mill stands in Larch Lane.",
    "I don't know that.",
    "and so on and so on and so on and so on",
)


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (FINE, FINE, ()),
        (FINE, REFUSED, ("8 of 8 prompts to keep are declined now (0 before)", "--instead")),
        (REFUSED, REFUSED, ()),
        (FINE, BABBLE, ("% of its word sequences are repeated ones (0% untouched)", "--instead FILE")),
        (BABBLE, FINE, ()),
    ],
)
def test_what_goes_wrong_is_told_with_what_mends_it(
    before: str, now: str, told: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepared(save_tiny(tmp_path / "model", "llama"), forget=made_up(6, 1), retain=made_up(12, 2))
    Trainer(run)  # puts an adapter on
    said = iter([before, now, now, before, now])

    def greedy(loaded: Any, prompts: list[list[int]], **_: Any) -> list[list[int]]:
        assert all(prompts)
        ids = loaded.tokenizer(next(said))["input_ids"]
        return [ids for _ in prompts]

    monkeypatch.setattr(advice, "greedy", greedy)
    monkeypatch.setattr(advice, "SHARE", float("inf"))
    advise = Advisor(run)
    lines = advise()
    assert len(lines) == bool(told)
    assert all(part in line for line in lines for part in told)
    assert (advise(), advise(), advise()) == ([], [], lines)  # what lasts is told once, what comes back again


@pytest.mark.parametrize("tokenizer", ["bytelevel", "bos"])
def test_a_text_without_a_prompt_is_asked_by_its_first_half(
    tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short one is not, also where beginning-of-text stands before it, which is no prompt."""
    run = prepared(save_tiny(tmp_path / "model", "llama", tokenizer))
    texts = [Example(f"{at}", prompt, "The mill stands.") for at, prompt in enumerate(("a", ""))]
    texts.append(Example("long", "", " ".join(["stands"] * 2 * LONG)))
    run.forget = run.retain = tokenize_all(run.loaded.tokenizer, texts, PromptFormat("space", True), max_length=999)
    half = run.forget[-1].input_ids[: len(run.forget[-1]) // 2]
    Trainer(run)
    asked: list[list[int]] = []

    def greedy(loaded: Any, prompts: list[list[int]], **_: Any) -> list[list[int]]:
        asked.extend(prompts)
        return [[5]] * len(prompts)

    monkeypatch.setattr(advice, "greedy", greedy)
    Advisor(run)
    halves = [ids for ids in asked if ids == half]
    others = [run.loaded.tokenizer.decode(ids, skip_special_tokens=True) for ids in asked if ids != half]
    assert (others, len(halves)) == (["a", "a"], 2)


def test_what_takes_long_is_not_asked_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepared(save_tiny(tmp_path / "model", "llama"), forget=made_up(6, 1), retain=made_up(12, 2))
    Trainer(run)
    times = iter([0, 2, 21, 22, 24, 25])  # before and after what takes 2 s: not after 19 s, and again after 20
    monkeypatch.setattr("time.monotonic", lambda: float(next(times)))
    asked: list[int] = []
    monkeypatch.setattr(
        advice, "greedy", lambda loaded, prompts, **_: asked.append(len(prompts)) or [[5]] * len(prompts)
    )
    advise = Advisor(run)
    advise()
    assert asked == [12]
    advise()
    assert asked == [12, 12]


def test_a_run_asks_at_its_evaluation_steps_or_now_and_then_and_trains_as_without(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", "llama")
    for name, first in (("forget", 0), ("retain", 20), ("holdout", 40)):
        rows = [{"prompt": f"Where is number {n}?", "completion": f"In row {n % 7}."} for n in range(first, first + 16)]
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("forget", "retain")}
    warned: list[str] = []

    class Heard(Reporter):
        def warn(self, line: str) -> None:
            if line.startswith("step"):
                warned.append(line)

    def run(name: str, advisor: Any = None, **settings: Any) -> bytes:
        config = UnlearnConfig(
            model=str(tmp_path / "model"), output=str(tmp_path / name), max_steps=8, replay_weight=0.0, device="cpu",
            **{"recipe": "npo", **files, **settings},
        )  # fmt: skip
        outcome = unlearn(config, Heard(quiet=True), advisor=advisor)
        return (outcome.adapter / "adapter_model.safetensors").read_bytes()

    def counts(given: Any) -> Any:
        return lambda: [f"{len(given.forget)} texts"]

    looked = run("looked", counts)
    assert warned == [f"step {step}: 16 texts" for step in range(1, 8)]
    warned.clear()
    run("evaluated", counts, holdout=str(tmp_path / "holdout.jsonl"), eval_every=3, recipe="default", target_auc=1.0)
    assert warned == [f"step {step}: 16 texts" for step in (3, 6)]
    assert run("advised", Advisor) == run("alone") == looked
