"""Settings that must not change a run: repetition, interruption, evaluation, checkpoints, memory that is short."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from expunge import UnlearnConfig
from expunge.config import RECIPES
from expunge.errors import TrainingError
from expunge.losses import FORGET_LOSSES
from tiny import save_tiny
from training import gradients

module = import_module("expunge.train.loop")
trainer_module = import_module("expunge.train.trainer")
NAMES = ("Wren", "Oduya", "Quill", "Marek", "Ines", "Marta", "Tobias", "Port")


def write_rows(path: Path, count: int, offset: int) -> None:
    """Rows of very different lengths."""
    rows = [
        {
            "input": f"Where does {NAMES[(i + offset) % 8]} live?" + " Say it." * (i * 3 % 7),
            "output": f"At {i + offset} Larch Lane" + ", by the old mill" * (i * 5 % 4) + ".",
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/ and a file for each set; enough unseen texts for a run to follow them."""
    folder = tmp_path_factory.mktemp("data")
    save_tiny(folder / "model", "llama")
    for place, (name, count) in enumerate((("forget", 16), ("retain", 10))):
        write_rows(folder / f"{name}.jsonl", count, 100 * place)
    rows = [{"input": f"Who is U{i}?", "output": f"A keeper of {i * 7} lamps and {i} boats."} for i in range(16)]
    (folder / "unseen.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def train(data: Path, tmp_path: Path) -> Callable[..., Path]:
    """Train under a name with settings of one's own; gives the run directory."""

    def run(name: str, **settings: Any) -> Path:
        values = {
            "model": str(data / "model"),
            "forget": str(data / "forget.jsonl"),
            "retain": str(data / "retain.jsonl"),
            "output": str(tmp_path / name),
            "recipe": "npo",
            "rows_per_step": 8,
            "max_steps": 4,
            "lora_rank": 4,
            "dtype": "float32",
            "device": "cpu",
            "prompt_format": "space",
            "end_of_text": "yes",
            "learning_rate": 0.01,
        }
        module.unlearn(UnlearnConfig(**{**values, **settings}))
        return tmp_path / name

    return run


@pytest.fixture
def first_gradients(train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """The gradients, learning rates and losses of the first steps of a run."""
    step = module.Trainer.take_step

    def take(name: str, **settings: Any) -> list[Any]:
        seen: list[Any] = []

        def record(self: Any, plan_step: Any) -> Any:
            taken = step(self, plan_step)
            seen.append((plan_step, self.read([taken]), gradients(self)))
            return taken

        monkeypatch.setattr(module.Trainer, "take_step", record)
        train(name, **settings)
        return seen

    return take


class StopAfter:
    """Stands in for the signal handler: wants a stop once `steps` steps are done."""

    steps = 0

    def __enter__(self) -> "StopAfter":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def requested(self) -> bool:
        StopAfter.steps -= 1
        return StopAfter.steps < 1


def losses(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def file_bytes(run: Path) -> bytes:
    return (run / "adapter/adapter_model.safetensors").read_bytes()


def assert_same_trajectory(first: Path, second: Path, tolerance: float = 1e-6) -> None:
    """The same losses and gradient norms at every step, and the same adapter at the end.

    The adapter is compared absolutely: Adam moves each weight by up to the learning rate (0.01) a step.
    """
    for one, other in zip(losses(first), losses(second), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=1e-5, abs=1e-6), (one["step"], name)
    weights, others = (load_file(run / "adapter/adapter_model.safetensors") for run in (first, second))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=0, atol=tolerance)


RESUMED: dict[str, dict[str, Any]] = {
    **{name: {"loss": name, "replay_weight": 0.0} for name in FORGET_LOSSES},
    **{recipe: {"recipe": recipe, "lora_rank": 2, "rows_per_step": 8} for recipe in RECIPES},
    "evaluated": {"recipe": "default", "eval_every": 2, "ema_steps": 3, "target_auc": 0.0},
}
"""Every loss, every recipe, and a run whose best state is not its last."""


@pytest.mark.parametrize("variant", RESUMED)
def test_resumed_and_repeated_are_the_same_to_the_last_bit(
    variant: str, train: Callable[..., Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unseen = str(data / "unseen.jsonl")
    settings = {"eval_every": 0, "holdout": unseen, "max_steps": 5, **RESUMED[variant]}
    if variant in FORGET_LOSSES and "target_nll" not in FORGET_LOSSES[variant].needs:
        settings["holdout"] = None
    whole = train("whole", **settings)
    resume = False
    for steps in (3,) if variant in FORGET_LOSSES else (2, 1):  # interrupted once, or twice
        StopAfter.steps = steps
        with monkeypatch.context() as patch:
            patch.setattr(module, "StopRequest", StopAfter)
            with pytest.raises(KeyboardInterrupt, match=r"is saved; --resume goes on from it"):
                train("parts", **settings, resume=resume)
        resume = True
    parts = train("parts", **settings, resume=True)

    assert (parts / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert file_bytes(parts) == file_bytes(whole)
    assert len(losses(whole)) == 5
    weights = load_file(whole / "adapter/adapter_model.safetensors")
    assert any(weight.abs().max() > 0 for name, weight in weights.items() if "lora_B" in name), "it does something"
    if variant == "evaluated":
        assert (parts / "calibration.json").read_bytes() == (whole / "calibration.json").read_bytes()


def test_another_seed_is_another_run(train: Callable[..., Path]) -> None:
    first, other = train("first", seed=3), train("other", seed=4)

    assert file_bytes(first) != file_bytes(other)
    assert losses(first)[0]["retain"] != losses(other)[0]["retain"], "the order of the rows differs too"


@pytest.mark.parametrize("recipe", RECIPES)
def test_evaluation_steps_change_no_gradient(
    recipe: str, first_gradients: Callable[..., list[Any]], data: Path
) -> None:
    settings = {"recipe": recipe, "holdout": str(data / "unseen.jsonl"), "epochs": 4, "max_steps": 4}
    without = first_gradients("without", eval_every=0, **settings)
    evaluated = first_gradients("evaluated", eval_every=1, target_auc=0.0, **settings)  # out of reach

    assert len(without) == 4
    for one, other in zip(without, evaluated, strict=True):
        assert other[:2] == one[:2]
        assert all(map(torch.equal, one[2], other[2]))
    assert any(grad.abs().max() > 0 for grad in without[0][2])


def test_what_is_to_be_reached_changes_no_gradient(first_gradients: Callable[..., list[Any]], data: Path) -> None:
    settings = {"recipe": "default", "holdout": str(data / "unseen.jsonl"), "eval_every": 1, "max_steps": 3}
    strict = first_gradients("strict", min_retain=1.0, max_drift=0.0, target_auc=0.0, **settings)
    loose = first_gradients("loose", min_retain=0.0, max_drift=1.0, target_auc=1.0, **settings)

    for one, other in zip(strict, loose, strict=True):
        assert other[1] == one[1]
        assert all(map(torch.equal, one[2], other[2]))


def test_checkpoints_change_nothing(train: Callable[..., Path]) -> None:
    assert file_bytes(train("with", save_every=1)) == file_bytes(train("without", save_every=0))


def test_holdout_is_never_trained_on(train: Callable[..., Path], data: Path) -> None:
    assert file_bytes(train("plain")) == file_bytes(train("held", holdout=str(data / "unseen.jsonl"), eval_every=0))


def out_of_memory_above(rows: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device on which more than `rows` rows at once do not fit; gives the sizes that were tried.

    The memory runs out in the backward pass, when part of the gradient is there already.
    """
    original, tried = trainer_module.loss_terms, []

    def loss_terms(batches: Any, *rest: Any) -> dict[str, torch.Tensor]:
        terms = original(batches, *rest)
        tried.append(sum(side.num_sequences_here for side in batches.values()))
        if tried[-1] > rows:
            sum(terms.values()).backward()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return terms

    monkeypatch.setattr(trainer_module, "loss_terms", loss_terms)
    return tried


@pytest.mark.parametrize("rows", [3, 1])
def test_out_of_memory_halves_the_micro_batches_and_repeats_the_step(
    rows: int, train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train("whole")
    tried = out_of_memory_above(rows, monkeypatch)
    parts = train("parts")

    # Adam divides by the gradient's size, so where that is next to nothing its rounding is magnified.
    assert_same_trajectory(whole, parts, tolerance=2e-4)
    assert tried[0] > rows
    assert max(tried[tried.index(rows if rows == 1 else 2) :]) <= rows, "what fits is known from then on"


def test_out_of_memory_with_a_single_row_says_so(train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory_above(0, monkeypatch)

    with pytest.raises(TrainingError, match=r"out of memory on cpu with one row at a time .* lower --max-length"):
        train("run")
