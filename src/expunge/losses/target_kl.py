"""Target KL: forget texts become as unlikely as texts that were never seen, and nothing else moves."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.config.checks import WEIGHT
from expunge.kernels import token_logps, token_target_kl
from expunge.losses import check_args, forget_loss
from expunge.losses.batch import TokenBatch, needed


@forget_loss(
    "target_kl",
    formula=(
        "mean_t KL(q_t || p_t) + nll_weight huber(-log p(y_t) - aim_t), q_t(y_t) = exp(-aim_t), the other tokens keep "
        "their shares of p_ref; aim_t = target NLL_t, those above free_nll of a prompt or completion in the order of "
        "-log p(y_t) unless an origin gave them"
    ),
    source="this project, docs/method.md",
)
@dataclass(frozen=True)
class TargetKL:
    """KL from a target distribution that differs from the untouched model's in the forget token alone.

    Its gradient on the logits is p - q: bounded, not vanishing where a token is known by heart, zero at the target,
    and it says what comes in place of the token. It is small where p is, however far log p still has to go: the Huber
    loss (of width 1 nat) goes the rest of the way.

    Target NLLs from unseen texts say how many tokens of a text should be how unlikely; which of the unlikely ones, they
    only guess. So these are dealt out anew at every step, the highest to the token that has the highest NLL now: a text
    need not learn by heart which of its tokens was given which. Those from an origin are each token's own. The share
    of the tokens whose aim is another one's target is the column `dealt_out` of the log.

    Attributes:
        nll_weight: Weight of the Huber loss.
        free_nll: Target NLL (nats) above which a token may take that of another one of its prompt or completion.
    """

    nll_weight: float = 2.0
    free_nll: float = 1.0
    needs: ClassVar[tuple[str, ...]] = ("ref_states", "target_nll")
    columns: ClassVar[tuple[str, ...]] = ("dealt_out",)

    def __post_init__(self) -> None:
        check_args(WEIGHT, nll_weight=self.nll_weight, free_nll=self.free_nll)

    def __call__(self, batch: TokenBatch) -> Tensor:
        ref_states, target_nll = needed(batch.ref_states), needed(batch.target_nll)
        if batch.guessed:
            nll = -token_logps(batch.states.detach(), batch.head, batch.targets)  # no gradient of it is computed
            target_nll = dealt_out(original := target_nll.to(nll.dtype), nll, batch.parts, self.free_nll)
            batch.noted["dealt_out"] = batch.token_mean((target_nll != original).float())
        loss = token_target_kl(batch.states, ref_states, batch.head, batch.targets, target_nll, self.nll_weight)
        return batch.token_mean(loss)


def dealt_out(target_nll: Tensor, nll: Tensor, parts: Tensor, free_nll: float) -> Tensor:
    """The targets above `free_nll` of each part in the order of the NLLs that its tokens have, the others as they are.

    Args:
        target_nll: `(tokens,)`, nats.
        nll: `(tokens,)`, what the tokens have.
        parts: `(tokens,)` int64, equal for tokens that may change places.
        free_nll: Targets up to this stay where they are.
    """
    free = target_nll > free_nll
    groups = 2 * parts + free
    places = torch.stack([nll, target_nll]).argsort(stable=True)
    # Places of the tokens, group by group, the lowest value of each first: by the NLLs they have, and by the targets.
    now, wanted = places.gather(1, groups[places].argsort(stable=True))
    return torch.where(free, torch.empty_like(target_nll).index_copy_(0, now, target_nll[wanted]), target_nll)
