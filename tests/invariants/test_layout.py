"""How the rows of a step are laid out and divided never changes what the step computes, for every registered loss."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from expunge.losses import FORGET_LOSSES
from expunge.train.trainer import Trainer
from expunge.utils.distributed import ALONE, Processes
from tiny import save_tiny
from training import gradients, made_up, prepared, ready

step_rows = import_module("expunge.train.step_rows")
SIDES = {
    "forget": made_up(5, 1),
    "retain": made_up(7, 2),
    "instead": made_up(3, 3),
    "unseen": made_up(4, 4),
}
REPLAY = made_up(3, 5)
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"loss": name} for name in FORGET_LOSSES},
    "npo a sequence": {"loss_args": "level=sequence,beta=0.1"},
    "completions alone": {"forget_span": "completion", "kl_span": "completion"},
    "tokens": {"rows_per_step": None, "tokens_per_step": 120},
    "no kl": {"kl_weight": 0.0},
    "no retain": {"kl_weight": 0.0, "retain_weight": 0.0, "replay_weight": 0.0},
    "recomputed": {"gradient_checkpointing": True},
}
TOLERANCE = 1e-5
"""Of a gradient's largest element: rounding in fp32."""


class Part(Processes):
    """A process of several whose sums are not taken, so that its own share is seen."""

    def total(self, values: Tensor) -> Tensor:
        return values


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture
def step(model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[dict[str, float], list[Tensor], Trainer]]:
    """Take the first step of a variant: its values, its gradients, the trainer."""

    def take(
        variant: str, *, packed: bool = True, budget: int = 10**6, processes: Processes = ALONE
    ) -> tuple[dict[str, float], list[Tensor], Trainer]:
        monkeypatch.setattr(step_rows, "MICRO_BATCH_TOKENS", {"cpu": budget})
        settings = {"rows_per_step": 8, "max_grad_norm": 0.0, "replay_weight": 0.7, **VARIANTS[variant]}
        run = prepared(model, **SIDES, **settings)
        if not packed:
            run.loaded.packable_length = 0
        trainer = ready(run, replay=REPLAY if run.config.replay_weight else ())
        assert trainer.rows.packed is packed
        trainer.processes = trainer.rows.processes = processes
        values = trainer.train_step(next(trainer.rows.plan.steps()))
        return values, gradients(trainer), trainer

    return take


@pytest.fixture(scope="module")
def whole() -> dict[str, tuple[dict[str, float], list[Tensor]]]:
    """Variant -> values and gradients of its step in one packed micro-batch, once it was taken."""
    return {}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("packed", "budget"), [(True, 1), (False, 10**6)])
def test_packed_or_padded_and_rows_alone(
    variant: str, packed: bool, budget: int, step: Callable[..., Any], whole: dict[str, Any]
) -> None:
    """A micro-batch budget of one token puts every row by itself, without any padding."""
    if variant not in whole:
        whole[variant] = step(variant)[:2]
    values, grads = whole[variant]
    others, other_grads, trainer = step(variant, packed=packed, budget=budget)

    assert others == pytest.approx(values, rel=1e-5, abs=1e-6)
    for grad, other in zip(grads, other_grads, strict=True):
        torch.testing.assert_close(other, grad, rtol=0, atol=TOLERANCE * max(1.0, grad.abs().max().item()))
    assert max(tensor.abs().max().item() for tensor in grads) > 1e-4
    assert values["forget"] != 0
    assert values.keys() == {"loss", "grad_norm", "learning_rate", *trainer.columns}
    assert ("dealt_out" in values) == (trainer.config.loss == "target_kl")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_shares_of_several_processes_add_up(variant: str, step: Callable[..., Any], whole: dict[str, Any]) -> None:
    if variant not in whole:
        whole[variant] = step(variant)[:2]
    values, grads = whole[variant]
    parts = [step(variant, budget=30, processes=Part(index, 3)) for index in range(3)]

    for number, expected in enumerate(grads):
        total = sum(part[1][number] for part in parts)
        torch.testing.assert_close(total, expected, rtol=0, atol=TOLERANCE * max(1.0, expected.abs().max().item()))
    for name in parts[0][2].columns:
        assert sum(part[0][name] for part in parts) == pytest.approx(values[name], rel=1e-5, abs=1e-6)
    assert all(any(grad.any() for grad in part[1]) for part in parts), "every process has some of the work"
