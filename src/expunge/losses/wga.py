"""WGA: gradient ascent that lets go of tokens that are unlikely already."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.config.checks import WEIGHT
from expunge.losses import check_args, forget_loss
from expunge.losses.batch import TokenBatch


@forget_loss(
    "wga",
    formula="mean_t p(y_t)^beta log p(y_t), the weight without a gradient",
    source="Wang et al. 2025, arXiv 2502.19301",
)
@dataclass(frozen=True)
class WGA:
    """Weighted gradient ascent: tokens that are unlikely already are let go.

    Attributes:
        beta: Exponent of the probability; 0 is gradient ascent.
    """

    beta: float = 1.0
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_args(WEIGHT, beta=self.beta)

    def __call__(self, batch: TokenBatch) -> Tensor:
        weights = (self.beta * batch.logps.detach()).exp()
        return batch.token_mean(weights * batch.logps)
