"""Gradient ascent on the NLL of the forget texts."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.losses import forget_loss
from expunge.losses.batch import TokenBatch


@forget_loss(
    "gradient_ascent",
    formula="mean_t log p(y_t); with the retain NLL beside it: gradient difference",
    source="Jang et al. 2023, arXiv 2210.01504; gradient difference: Liu et al. 2022, arXiv 2203.12817",
)
@dataclass(frozen=True)
class GradientAscent:
    """The negative of the NLL, which has no lower bound: a run of it ends in ruin unless it is stopped."""

    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, batch: TokenBatch) -> Tensor:
        return batch.token_mean(batch.logps)
