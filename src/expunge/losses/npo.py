"""Negative preference optimization."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import softplus

from expunge.config.checks import ABOVE_ZERO
from expunge.errors import ConfigError
from expunge.losses import check_args, forget_loss
from expunge.losses.batch import TokenBatch

LEVELS = ("token", "sequence")


@forget_loss(
    "npo",
    formula="(2/beta) mean softplus(-beta s), s = s_t of a token or its sum over a sequence",
    source="Zhang et al. 2024, arXiv 2404.05868, Eq. 3; per token: arXiv 2503.13690",
)
@dataclass(frozen=True)
class NPO:
    """NPO with a token or a sequence as the unit.

    Attributes:
        beta: Inverse temperature; towards 0 the gradient becomes that of gradient ascent. The default is that of
            2503.13690, per token; the code of 2404.05868 has 0.1, per sequence.
        level: `token` or `sequence`, the unit of the mean.
    """

    beta: float = 0.5
    level: str = "token"
    needs: ClassVar[tuple[str, ...]] = ("ref_logps",)

    def __post_init__(self) -> None:
        check_args(ABOVE_ZERO, beta=self.beta)
        if self.level not in LEVELS:
            raise ConfigError(f"--loss-args level={self.level}: must be one of {', '.join(LEVELS)}")

    def __call__(self, batch: TokenBatch) -> Tensor:
        if self.level == "token":
            return (2 / self.beta) * softplus(-self.beta * batch.log_ratios).sum() / batch.num_tokens
        ratios = batch.per_sequence(batch.log_ratios)
        return (2 / self.beta) * softplus(-self.beta * ratios).sum() / batch.num_sequences
