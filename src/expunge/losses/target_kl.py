"""Target KL: each forget token becomes as unlikely as in texts that were never seen, and nothing else moves."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.kernels import token_target_kl
from expunge.losses import check_not_negative, forget_loss
from expunge.losses.batch import TokenBatch, needed


@forget_loss(
    "target_kl",
    formula=(
        "mean_t KL(q_t || p_t) + nll_weight huber(-log p(y_t) - target NLL_t), q_t(y_t) = exp(-target NLL_t), the "
        "other tokens keep their shares of p_ref"
    ),
    source="this project, docs/method.md",
)
@dataclass(frozen=True)
class TargetKL:
    """KL from a target distribution that differs from the untouched model's in the forget token alone.

    Its gradient on the logits is p - q: bounded, not vanishing where a token is known by heart, zero at the target,
    and it says what comes in place of the token. It is small where p is, however far log p still has to go: the Huber
    loss (of width 1 nat) goes the rest of the way.

    Attributes:
        nll_weight: Weight of the Huber loss.
    """

    nll_weight: float = 2.0
    needs: ClassVar[tuple[str, ...]] = ("ref_states", "target_nll")

    def __post_init__(self) -> None:
        check_not_negative(nll_weight=self.nll_weight)

    def __call__(self, batch: TokenBatch) -> Tensor:
        ref_states, target_nll = needed(batch.ref_states), needed(batch.target_nll)
        loss, _ = token_target_kl(batch.states, ref_states, batch.head, batch.targets, target_nll, self.nll_weight)
        return batch.token_mean(loss)
