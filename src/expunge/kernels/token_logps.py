"""Per-token log-probabilities from hidden states, chunk by chunk, with the gradient computed on the way forward."""

import torch
from torch import Tensor

from expunge.kernels.head import Head, fused

IGNORE_INDEX = -100


def plain_token_logps(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """The formula that `token_logps` equals: log softmax of all logits, gathered at the targets; 0 where ignored."""
    logps = head.logits(hidden).log_softmax(-1)
    kept = targets != IGNORE_INDEX
    return logps.gather(-1, targets.where(kept, 0)[:, None])[:, 0].where(kept, 0)


def token_logps(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """Log-probability (nats) of each target token; equals `plain_token_logps`, without its memory (`head.fused`).

    Args:
        hidden: `(num_tokens, hidden)`, final hidden states of the positions that predict the targets.
        head: The frozen head.
        targets: `(num_tokens,)` int64; -100 gives 0 and takes no gradient.

    Returns:
        `(num_tokens,)`, fp32 (fp64 for fp64 input).
    """
    kept = targets != IGNORE_INDEX

    def chunk(rows: slice, logps: Tensor, slopes: Tensor | None = None) -> None:
        logits = head.logits(hidden[rows])
        log_norm = logits.logsumexp(-1)
        picked = logits.gather(-1, targets[rows].where(kept[rows], 0)[:, None])[:, 0]
        logps[:] = (picked - log_norm).where(kept[rows], 0)
        if slopes is not None:
            grad = target_gradient((logits - log_norm[:, None]).exp_(), targets[rows])
            slopes[:] = head.grad_hidden(grad, logits)

    (logps,) = fused(hidden, head, 1, chunk)
    return logps


def target_gradient(probs: Tensor, targets: Tensor) -> Tensor:
    """Gradient of logp_target by the logits: onehot(target) - probs, zero rows where ignored. Overwrites `probs`."""
    kept = targets != IGNORE_INDEX
    grad = probs.neg_()
    grad.scatter_add_(-1, targets.where(kept, 0)[:, None], torch.ones_like(grad[:, :1]))
    return grad.mul_(kept[:, None])
