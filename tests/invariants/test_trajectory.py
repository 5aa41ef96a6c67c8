"""Settings that must not change a run: how rows are laid out, how many processes share the work, and repetition."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from expunge import UnlearnConfig
from tiny import save_tiny

module = import_module("expunge.unlearn")
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
    "target token": {"kl_direction": "target-token", "kl_span": "completion", "mix": "random", "rows_per_step": 4},
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
    monkeypatch.setattr(module, "MICRO_BATCH_TOKENS", {"cpu": 10**6})
    whole = train("whole", **settings)
    monkeypatch.setattr(module, "MICRO_BATCH_TOKENS", {"cpu": budget})
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
        monkeypatch.setattr(module, "MICRO_BATCH_TOKENS", {"cpu": budget})
        train(f"run-{budget}", max_steps=1, max_grad_norm=0.0, **VARIANTS[variant])

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


def test_two_processes_equal_one(data: Path, tmp_path: Path) -> None:
    """The command line under a launcher: gloo on the CPU, each micro-batch on one of the processes."""
    arguments = (
        "unlearn", "--model", "model", "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--max-steps", "4",
        "--rows-per-step", "8", "--lora-rank", "4", "--dtype", "float32", "--device", "cpu", "--join", "space",
    )  # fmt: skip
    # A budget below the step's rows, so that there is work for both.
    program = (
        "import sys; from importlib import import_module\n"
        "import_module('expunge.unlearn').MICRO_BATCH_TOKENS = {'cpu': 100}\n"
        "from expunge.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    source = str(Path(import_module("expunge").__file__ or "").parents[1])
    common = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launched = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
    }  # fmt: skip

    def start(output: str, **extra: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", program, *arguments, "--output", str(tmp_path / output)],
            cwd=data, env=common | extra, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    pair = [start("two", RANK=str(rank), LOCAL_RANK=str(rank), **launched) for rank in range(2)]
    try:
        ends = [process.communicate(timeout=150) for process in pair]
    finally:
        for process in pair:
            process.kill()
    single = start("one")
    _, errors = single.communicate(timeout=100)

    assert [process.returncode for process in pair] == [0, 0], ends
    assert single.returncode == 0, errors
    assert ends[1][0] == "", "only the first process speaks"
    assert "unlearning 4/4" in ends[0][1]
    assert "unlearning" not in ends[1][1]
    assert_same_trajectory(tmp_path / "one", tmp_path / "two", tolerance=1e-6)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(
        path.name for path in (tmp_path / "one").iterdir()
    )
