"""CEU: cross-entropy to what the model itself would say if the forget token were ruled out."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.kernels import token_target_kl
from expunge.losses import forget_loss
from expunge.losses.batch import TokenBatch

RULED_OUT = 1e4
"""NLL (nats) of a probability of 0, the KL to which is finite."""


@forget_loss(
    "ceu",
    formula="mean_t -log(1 - p(y_t))",
    source="Yang 2025, arXiv 2503.01224, less the entropy of its target, which has no gradient",
)
@dataclass(frozen=True)
class CEU:
    """Cross-entropy unlearning: the target is the policy's own distribution without the forget token, held fixed.

    The cross-entropy to it is -log(1 - p(y)), the KL, plus the entropy of the target, which takes no gradient. The KL
    is computed over the other tokens, so it has its whole gradient where p(y) is 1 but for rounding.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, batch: TokenBatch) -> Tensor:
        target_nll = torch.full_like(batch.targets, RULED_OUT, dtype=torch.float32)
        kl = token_target_kl(batch.states, batch.states.detach(), batch.head, batch.targets, target_nll)
        return batch.token_mean(kl)
