"""KL per token to a target distribution: the token gets a probability, the others keep the reference's shares.

With y the token, t its target probability and w(v) = p_ref(v) / (1 - p_ref(y)) for v != y,

    q(y) = t,    q(v) = (1 - t) w(v)
    KL(q || p) = t (log t - log p(y)) + (1 - t) (log(1 - t) + sum over v != y of w(v) (log w(v) - log p(v)))

and the gradient on the logits is p - q: bounded, two-sided, zero at the target. `w` comes from a log-softmax of the
reference over the others alone, so nothing cancels where p_ref(y) is near 1, which is where a text is known by heart.

KL(q || p) hardly tells a probability of .05 from one of .002, so a Huber loss of what log p(y) is from log t can be
added, H(e) = e^2 / 2 up to |e| = 1 and |e| - 1/2 beyond; its gradient on the logits is clip(e, -1, 1) (1_y - p).
"""

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from expunge.kernels.head import LOWEST, Head, fused


def plain_target_kl(
    hidden: Tensor, ref_hidden: Tensor, head: Head, targets: Tensor, target_nll: Tensor, nll_weight: float = 0.0
) -> Tensor:
    """The formula that `token_target_kl` equals, in terms of r = p_ref(y) and S; for fp64.

    KL(q || p) = t (log t - log p(y)) + (1 - t) (log(1 - t) - log(1 - r)) + (1 - t) / (1 - r) * S with
    S = sum over v != y of p_ref(v) (log p_ref(v) - log p(v)), the sums taken over the other entries.
    """
    logp, logq = head.logits(hidden).log_softmax(-1), head.logits(ref_hidden).log_softmax(-1)
    others = torch.ones_like(logq).scatter_(-1, targets[:, None], 0).bool() & (logq > -torch.inf)
    rest = torch.where(others, logq.exp(), 0).sum(-1)  # 1 - r
    gaps = torch.where(others, logq.exp() * (logq - logp), 0).sum(-1)  # S
    t = (-target_nll.to(logp.dtype)).exp()
    logps = logp.gather(-1, targets[:, None])[:, 0]
    target_term = torch.xlogy(t, t) - t * logps
    kl = target_term + torch.xlogy(1 - t, 1 - t) - (1 - t) * rest.log() + (1 - t) / rest * gaps
    return kl + nll_weight * huber_loss(-logps, target_nll.to(logp.dtype), reduction="none")


def token_target_kl(
    hidden: Tensor, ref_hidden: Tensor, head: Head, targets: Tensor, target_nll: Tensor, nll_weight: float = 0.0
) -> Tensor:
    """KL(q || p) of each token to its target distribution, from one pass over the logits.

    Args:
        hidden: `(num_tokens, hidden)`, the policy's final hidden states.
        ref_hidden: `(num_tokens, hidden)`, the reference's, which take no gradient.
        head: The frozen head.
        targets: `(num_tokens,)` int64, all of them token ids (nothing is ignored).
        target_nll: `(num_tokens,)`, -log t in nats, at least 0.
        nll_weight: Weight of the Huber loss of log p(y) - log t that is added.

    Returns:
        `(num_tokens,)`, the sum of both in nats, fp32 (fp64 for fp64 input), differentiable in `hidden`.
    """
    log_t = -target_nll.to(torch.promote_types(hidden.dtype, torch.float32))
    t, rest = log_t.exp(), -log_t.expm1()  # t and 1 - t
    entropy = torch.xlogy(t, t) + torch.xlogy(rest, rest)

    def chunk(rows: slice, slopes: bool) -> list[Tensor]:
        picked = targets[rows, None]
        logits = head.logits(hidden[rows])
        logp = logits.log_softmax(-1)
        logps = logp.gather(-1, picked)[:, 0]
        shares = head.logits(ref_hidden[rows]).scatter(-1, picked, -torch.inf).log_softmax(-1)  # log w
        weights = shares.exp()
        gaps = shares.clamp_(min=LOWEST).sub_(logp.clamp(min=LOWEST))  # finite where w is 0
        kl = entropy[rows] - t[rows] * logps + rest[rows] * torch.linalg.vecdot(weights, gaps)
        loss = kl + nll_weight * huber_loss(logps, log_t[rows], reduction="none")
        if not slopes:
            return [loss]
        push = nll_weight * (logps - log_t[rows]).clamp(-1, 1)
        wanted = weights.mul_(rest[rows, None]).scatter_(-1, picked, (t[rows] - push)[:, None])
        grad = logp.exp_().mul_(1 - push[:, None]).sub_(wanted)  # p - q + push (1_y - p)
        return [loss, head.grad_hidden(grad, logits)]

    (loss,) = fused(hidden, head, 1, chunk)
    return loss
