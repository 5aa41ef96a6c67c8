"""DPO: the forget completions are dispreferred to other completions of the same prompts."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import softplus

from expunge.config.checks import ABOVE_ZERO
from expunge.losses import check_args, forget_loss
from expunge.losses.batch import TokenBatch, needed


@forget_loss(
    "dpo",
    formula="-(2/beta) mean_b log sigmoid(beta (sum_t s_t of the forget completion - sum_t s_t of the other one))",
    source="Rafailov et al. 2023, arXiv 2305.18290, Eq. 7; the factor 2/beta as in arXiv 2404.05868",
)
@dataclass(frozen=True)
class DPO:
    """Direct preference optimization with `--instead` completions, or refusals, as the preferred ones.

    Attributes:
        beta: Inverse temperature.
    """

    beta: float = 0.1
    needs: ClassVar[tuple[str, ...]] = ("ref_logps", "pairs")

    def __post_init__(self) -> None:
        check_args(ABOVE_ZERO, beta=self.beta)

    def __call__(self, batch: TokenBatch) -> Tensor:
        pairs = needed(batch.pairs)
        log_ratios = batch.log_ratios.where(batch.completion, 0.0)  # the prompt is the same on both sides
        margin = batch.per_sequence(log_ratios) - pairs.per_sequence(pairs.log_ratios)
        return (2 / self.beta) * batch.sequence_mean(softplus(-self.beta * margin))
