"""SatImp: gradient ascent with weights for saturation and importance."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.config.checks import WEIGHT
from expunge.losses import check_args, forget_loss
from expunge.losses.batch import TokenBatch


@forget_loss(
    "satimp",
    formula="mean_t p(y_t)^beta1 (1 - p(y_t))^beta2 log p(y_t), the weight without a gradient",
    source="Yang et al. 2025, arXiv 2505.11953",
)
@dataclass(frozen=True)
class SatImp:
    """Saturation and importance: tokens that are known by heart or unlikely already weigh less.

    Attributes:
        beta1: Exponent of the probability.
        beta2: Exponent of its complement.
    """

    beta1: float = 5.0
    beta2: float = 1.0
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_args(WEIGHT, beta1=self.beta1, beta2=self.beta2)

    def __call__(self, batch: TokenBatch) -> Tensor:
        logps = batch.logps.detach()
        weights = (self.beta1 * logps).exp() * (-logps.expm1()) ** self.beta2
        return batch.token_mean(weights * batch.logps)
