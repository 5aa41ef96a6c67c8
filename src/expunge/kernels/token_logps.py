"""Per-token log-probabilities from hidden states, chunk by chunk, with the gradient computed on the way forward."""

from typing import Any

import torch
from torch import Tensor

from expunge.kernels.head import Head

IGNORE_INDEX = -100


def plain_token_logps(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """The formula that `token_logps` equals: log softmax of all logits, gathered at the targets; 0 where ignored."""
    logps = head.logits(hidden).log_softmax(-1)
    kept = targets != IGNORE_INDEX
    return logps.gather(-1, targets.where(kept, 0)[:, None])[:, 0].where(kept, 0)


def token_logps(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """Log-probability (nats) of each target token; equals `plain_token_logps`, without its memory.

    A token's log-probability depends on its own hidden state alone and the head takes no gradient, so
    d logp_t / d hidden_t is computed while the chunk's logits exist; the backward pass is one multiplication.

    Args:
        hidden: `(num_tokens, hidden)`, final hidden states of the positions that predict the targets.
        head: The frozen head.
        targets: `(num_tokens,)` int64; -100 gives 0 and takes no gradient.

    Returns:
        `(num_tokens,)`, fp32 (fp64 for fp64 input).
    """
    logps: Tensor = _TokenLogps.apply(hidden, head, targets)  # type: ignore[no-untyped-call]
    return logps


def target_gradient(probs: Tensor, targets: Tensor) -> Tensor:
    """Gradient of logp_target by the logits: onehot(target) - probs, zero rows where ignored. Overwrites `probs`."""
    kept = targets != IGNORE_INDEX
    grad = probs.neg_()
    grad.scatter_add_(-1, targets.where(kept, 0)[:, None], torch.ones_like(grad[:, :1]))
    return grad.mul_(kept[:, None])


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
        needs_grad = ctx.needs_input_grad[0]
        logps = hidden.new_empty(hidden.shape[0], dtype=torch.promote_types(hidden.dtype, torch.float32))
        slopes = torch.empty_like(hidden) if needs_grad else hidden.new_empty(0)
        kept = targets != IGNORE_INDEX
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in head.chunks(hidden):
                logits = head.logits(hidden[rows])
                log_norm = logits.logsumexp(-1)
                picked = logits.gather(-1, targets[rows].where(kept[rows], 0)[:, None])[:, 0]
                logps[rows] = (picked - log_norm).where(kept[rows], 0)
                if needs_grad:
                    grad_logits = target_gradient((logits - log_norm[:, None]).exp_(), targets[rows])
                    slopes[rows] = head.grad_hidden(grad_logits, logits).to(slopes.dtype)
        ctx.save_for_backward(slopes)
        return logps

    @staticmethod
    def backward(ctx: Any, grad_logps: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return (slopes * grad_logps[:, None]).to(slopes.dtype), None, None
