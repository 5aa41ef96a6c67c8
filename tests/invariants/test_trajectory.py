"""Settings that must not change a run: how rows are laid out, how many processes share the work, and repetition."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from expunge import UnlearnConfig
from expunge.errors import TrainingError
from tiny import save_tiny

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
    """A folder with model/, forget.jsonl and retain.jsonl."""
    folder = tmp_path_factory.mktemp("data")
    save_tiny(folder / "model", "llama")
    write_rows(folder / "forget.jsonl", 6, 0)
    write_rows(folder / "retain.jsonl", 10, 100)
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
            "rows_per_step": 8,
            "max_steps": 4,
            "lora_rank": 4,
            "dtype": "float32",
            "device": "cpu",
            "join": "space",
            "end_of_text": "yes",
            "learning_rate": 0.01,
        }
        module.unlearn(UnlearnConfig(**{**values, **settings}))
        return tmp_path / name

    return run


def losses(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter/adapter_model.safetensors")


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
    weights, others = adapter(first), adapter(second)
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=0, atol=tolerance)


VARIANTS = {
    "default": {},
    "sequence": {"level": "sequence", "beta": 0.1},
    "paper": {
        "kl_span": "completion",
        "forget_span": "completion",
        "kl_direction": "forward",
        "target_modules": "auto",
    },
    "target token": {
        "kl_direction": "target-token",
        "kl_span": "completion",
        "mix": "random",
        "rows_per_step": 4,
        "anchor_weight": 0.0,
    },
    "tokens": {"rows_per_step": None, "tokens_per_step": 300},
    "no kl": {"kl_weight": 0.0},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("budget", [64, 1])
def test_accumulated_equals_one_batch_and_rows_alone(
    variant: str, budget: int, train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A micro-batch budget of 1 token puts every row by itself, without any padding."""
    settings = VARIANTS[variant]
    monkeypatch.setattr(trainer_module, "MICRO_BATCH_TOKENS", {"cpu": 10**6})
    whole = train("whole", **settings)
    monkeypatch.setattr(trainer_module, "MICRO_BATCH_TOKENS", {"cpu": budget})
    parts = train("parts", **settings)

    # Adam divides by the gradient's size, so where that is next to nothing its rounding is magnified.
    assert_same_trajectory(whole, parts, tolerance=2e-4)


@pytest.mark.parametrize("variant", ["default", "sequence"])
def test_gradient_of_a_step_does_not_depend_on_its_layout(
    variant: str, train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen at the gradients themselves, away from zero, before Adam."""
    found: dict[int, list[torch.Tensor]] = {}
    step = module.Trainer.train_step
    for budget in (10**6, 200, 1):

        def record(self: Any, plan_step: Any, index: int, budget: int = budget) -> dict[str, float]:
            if index == 0:
                torch.manual_seed(1)
                with torch.no_grad():
                    for parameter in self.parameters:
                        parameter.add_(torch.randn_like(parameter), alpha=0.05)
            result = step(self, plan_step, index)
            found[budget] = [parameter.grad.clone() for parameter in self.parameters]
            return result

        monkeypatch.setattr(module.Trainer, "train_step", record)
        monkeypatch.setattr(trainer_module, "MICRO_BATCH_TOKENS", {"cpu": budget})
        train(f"run-{budget}", max_steps=1, max_grad_norm=0.0, forget_weight=1.0, **VARIANTS[variant])

    for budget in (200, 1):
        for grad, other in zip(found[10**6], found[budget], strict=True):
            torch.testing.assert_close(other, grad, rtol=0, atol=2e-6 * max(1.0, grad.abs().max().item()))
            assert grad.abs().max() > 0


def test_same_seed_same_bytes_other_seed_other_bytes(train: Callable[..., Path]) -> None:
    first, second, other = train("first", seed=3), train("second", seed=3), train("other", seed=4)

    assert file_bytes(first) == file_bytes(second)
    assert (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()
    assert file_bytes(first) != file_bytes(other)
    assert losses(first)[0]["retain_nll"] != losses(other)[0]["retain_nll"], "the order of the rows differs too"


def test_checkpoints_change_nothing(train: Callable[..., Path]) -> None:
    assert file_bytes(train("with", save_every=1)) == file_bytes(train("without", save_every=0))


def test_recomputed_activations_change_nothing(train: Callable[..., Path]) -> None:
    assert_same_trajectory(train("kept"), train("recomputed", gradient_checkpointing=True))


def test_holdout_is_never_trained_on(train: Callable[..., Path], data: Path) -> None:
    assert file_bytes(train("plain")) == file_bytes(train("held", holdout=str(data / "retain.jsonl")))


def out_of_memory_above(rows: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device on which more than `rows` rows at once do not fit; gives the sizes that were tried.

    The memory runs out in the backward pass, when part of the gradient is there already.
    """
    original, tried = trainer_module.loss_terms, []

    def loss_terms(loaded: Any, batch: Any, *rest: Any) -> dict[str, torch.Tensor]:
        terms = original(loaded, batch, *rest)
        tried.append(len(batch))
        if len(batch) > rows:
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

    assert_same_trajectory(whole, parts, tolerance=2e-4)
    assert tried[0] > rows
    assert max(tried[tried.index(rows if rows == 1 else 2) :]) <= rows, "what fits is known from then on"


def test_out_of_memory_with_a_single_row_says_so(train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory_above(0, monkeypatch)

    with pytest.raises(TrainingError, match=r"out of memory on cpu with one row at a time .* lower --max-length"):
        train("run")
