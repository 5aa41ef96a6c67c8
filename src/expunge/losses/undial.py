"""UNDIAL: distil the untouched model with the logit of each forget token lowered."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.config.checks import ABOVE_ZERO
from expunge.kernels import token_target_kl
from expunge.losses import check_args, forget_loss
from expunge.losses.batch import TokenBatch, needed


@forget_loss(
    "undial",
    formula="mean_t KL(q_t || p_t), q_t = softmax(untouched logits - beta onehot(y_t))",
    source="Dong et al. 2024, arXiv 2402.10052, Eq. 3, less the entropy of q, which has no gradient",
)
@dataclass(frozen=True)
class UNDIAL:
    """Self-distillation with adjusted logits.

    Attributes:
        beta: How much is taken from the logit of a forget token.
    """

    beta: float = 10.0
    needs: ClassVar[tuple[str, ...]] = ("ref_logps", "ref_states")

    def __post_init__(self) -> None:
        check_args(ABOVE_ZERO, beta=self.beta)

    def __call__(self, batch: TokenBatch) -> Tensor:
        known = needed(batch.ref_logps)  # log r
        others = torch.log(-torch.expm1(known.clamp(max=-torch.finfo(known.dtype).tiny)))  # log(1 - r)
        target_nll = torch.logaddexp(known - self.beta, others) - known + self.beta
        ref_states = needed(batch.ref_states)
        kl = token_target_kl(batch.states, ref_states, batch.head, batch.targets, target_nll)
        return batch.token_mean(kl)
