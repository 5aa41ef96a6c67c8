"""Target NLL: prompt and completion of each forget text end with the mean NLL of texts that were never seen."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from expunge.config.checks import ABOVE_ZERO
from expunge.losses import check_args, forget_loss
from expunge.losses.batch import TokenBatch, needed


@forget_loss(
    "target_nll",
    formula="mean over groups, weighted by their tokens, of Huber(target NLL - mean NLL); a group is the prompt or the "
    "completion of a text",
    source="this project, docs/method.md",
)
@dataclass(frozen=True)
class TargetNLL:
    """A two-sided Huber loss on the distance of each group's mean NLL from its target.

    Attributes:
        delta: Distance (nats per token) from which on the push no longer grows.
    """

    delta: float = 0.5
    needs: ClassVar[tuple[str, ...]] = ("target_nll",)

    def __post_init__(self) -> None:
        check_args(ABOVE_ZERO, delta=self.delta)

    def __call__(self, batch: TokenBatch) -> Tensor:
        sizes, nll, target = (
            values.new_zeros(2 * batch.num_sequences_here).index_add(0, batch.parts, values)
            for values in (torch.ones_like(batch.logps), -batch.logps, needed(batch.target_nll))
        )
        present = sizes.clamp(min=1)
        distance = huber_loss(nll / present, target / present, reduction="none", delta=self.delta)
        return (sizes * distance).sum() / batch.num_tokens
