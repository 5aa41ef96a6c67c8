"""IDK: learn to answer something else to the forget prompts."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.losses import forget_loss
from expunge.losses.batch import TokenBatch, needed


@forget_loss(
    "idk",
    formula="mean_t -log p(z_t), z the other completion of the forget prompt",
    source="Maini et al. 2024, arXiv 2401.06121, Sec. 4",
)
@dataclass(frozen=True)
class IDK:
    """NLL of `--instead` completions, or refusals, after the forget prompts; the mean runs over their tokens."""

    needs: ClassVar[tuple[str, ...]] = ("pairs",)

    def __call__(self, batch: TokenBatch) -> Tensor:
        pairs = needed(batch.pairs)
        return pairs.token_mean(-pairs.logps)
