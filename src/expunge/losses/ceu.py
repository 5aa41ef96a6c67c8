"""CEU: cross-entropy to what the model itself would say if the forget token were ruled out."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.config.checks import COUNT
from expunge.kernels import token_target_kl
from expunge.losses import check_args, forget_loss
from expunge.losses.batch import TokenBatch

RULED_OUT = 1e4
"""NLL (nats) of a probability of 0, the KL to which is finite."""


@forget_loss(
    "ceu",
    formula="mean_t -log(1 - p(y_t)), less the first ignore_first tokens of each completion",
    source="Yang 2025, arXiv 2503.01224, less the entropy of its target, which has no gradient",
)
@dataclass(frozen=True)
class CEU:
    """Cross-entropy unlearning: the target is the policy's own distribution without the forget token, held fixed.

    The cross-entropy to it is -log(1 - p(y)), the KL, plus the entropy of the target, which takes no gradient. The KL
    is computed over the other tokens, so it has its whole gradient where p(y) is 1 but for rounding.

    Attributes:
        ignore_first: How many tokens at the beginning of each completion are left alone, by the paper's footnote on its
            training settings; a shorter completion is left alone altogether.
    """

    ignore_first: int = 1
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_args(COUNT, ignore_first=self.ignore_first)

    def __call__(self, batch: TokenBatch) -> Tensor:
        target_nll = torch.full_like(batch.targets, RULED_OUT, dtype=torch.float32)
        kl = token_target_kl(batch.states, batch.states.detach(), batch.head, batch.targets, target_nll)
        ignored = sum(min(self.ignore_first, length) for length in batch.completion_lengths)
        kept = ~batch.completion | (batch.completion_places >= self.ignore_first)
        return kl.where(kept, 0.0).sum() / max(1, batch.num_tokens - ignored)
