"""SimNPO: NPO without a reference, by the mean log-probability of a sequence."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import softplus

from expunge.config.checks import ABOVE_ZERO
from expunge.errors import ConfigError
from expunge.losses import check_args, forget_loss
from expunge.losses.batch import TokenBatch


@forget_loss(
    "simnpo",
    formula="-(2/beta) mean_b log sigmoid(-beta mean_t log p(y_t) - gamma)",
    source="Fan et al. 2024, arXiv 2410.07163, Eq. 5",
)
@dataclass(frozen=True)
class SimNPO:
    """SimNPO.

    Attributes:
        beta: Inverse temperature.
        gamma: Margin; above 0, sequences are pushed further. The paper's: its code, and open-unlearning's `delta`, have
            theirs within the product with beta, so that 0.1 there at a beta of 4.5 is 0.45 here.
    """

    beta: float = 4.5
    gamma: float = 0.0
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_args(ABOVE_ZERO, beta=self.beta)
        if not math.isfinite(self.gamma):
            raise ConfigError(f"--loss-args gamma={self.gamma}: must be finite")

    def __call__(self, batch: TokenBatch) -> Tensor:
        mean_nll = -batch.per_sequence(batch.logps) / batch.lengths
        return (2 / self.beta) * batch.sequence_mean(softplus(self.gamma - self.beta * mean_nll))
