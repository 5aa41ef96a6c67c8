"""CEU: cross-entropy to what the model itself would say if the forget token were ruled out."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.losses import forget_loss
from expunge.losses.batch import TokenBatch

SUREST = 1e-6
"""A probability counts as no nearer to 1 than this."""


@forget_loss(
    "ceu",
    formula="mean_t -log(1 - p(y_t))",
    source="Yang 2025, arXiv 2503.01224, less the entropy of its target, which has no gradient",
)
@dataclass(frozen=True)
class CEU:
    """Cross-entropy unlearning: the target is the policy's own distribution without the forget token, held fixed.

    The cross-entropy to it is -log(1 - p(y)) plus the entropy of the target, which takes no gradient.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, batch: TokenBatch) -> Tensor:
        return batch.token_mean(-torch.log(-torch.expm1(batch.logps.clamp(max=-SUREST))))
