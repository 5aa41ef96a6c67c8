"""What the log has of a step: it stays on the device until some steps are read together."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.data.sampler import Step
from expunge.errors import TrainingError

AT_ITS_END = 1e-3
"""Of a term up to this the gradient may be zero: it is where it should be, but for rounding."""
STEPS_PER_READ = {"cpu": 1, "cuda": 16}
"""Most steps between two reads of what is logged, per device type: with each of them a GPU runs empty."""


@dataclass(frozen=True)
class TakenStep:
    """A step that was taken.

    Attributes:
        step: Its rows.
        rate: Its learning rate.
        tokens: Area of its rows, in tokens.
        values: `(columns + 1,)` on the device: terms, what the loss notes, and the gradient's norm before clipping.
    """

    step: Step
    rate: float
    tokens: int
    values: Tensor


def read_steps(
    taken: Sequence[TakenStep], columns: Mapping[str, float], ids: Callable[[Step], list[str]]
) -> list[dict[str, float]]:
    """What the log has of some steps, in one transfer.

    Args:
        taken: The steps.
        columns: Term of the loss -> its weight; what the forget loss notes beside them -> 0.
        ids: Gives the ids of a step's rows, for the message.

    Returns:
        For each the loss, its columns (means over the step's denominators, before the update; 0 for a side without
        rows), the gradient's norm before clipping and the learning rate.

    Raises:
        TrainingError: A term or the gradient of one of them is not finite, or that of the first is zero.
    """
    lines = []
    for entry, values in zip(taken, torch.stack([entry.values for entry in taken]).tolist(), strict=True):
        line = dict(zip([*columns, "grad_norm"], values, strict=True))
        if not all(map(math.isfinite, values)):
            shown = ", ".join(f"{name} {value:.4g}" for name, value in line.items())
            raise TrainingError(
                f"step {entry.step.number + 1} is not finite ({shown}); rows {', '.join(ids(entry.step))}: lower "
                "--learning-rate or look at these rows; checkpoints up to here are good"
            )
        far = [name for name, weight in columns.items() if weight and abs(line[name]) > AT_ITS_END]
        if entry.step.number == 0 and not line["grad_norm"] and far:
            raise TrainingError(
                "step 1 has no gradient: nothing that the loss looks at depends on the adapter; look at "
                "--target-modules"
            )
        loss = sum(weight * line[name] for name, weight in columns.items())
        lines.append({"loss": loss, **line, "learning_rate": entry.rate})
    return lines
