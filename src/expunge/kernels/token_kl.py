"""Exact full-vocabulary KL per token against cached reference hidden states, with the log-probabilities on the way."""

import torch
from torch import Tensor

from expunge.kernels.head import LOWEST, Head, fused
from expunge.kernels.token_logps import IGNORE_INDEX, target_gradient


def plain_token_kl(hidden: Tensor, ref_hidden: Tensor, head: Head) -> Tensor:
    """The formula that `token_logps_and_kl` equals: sum over the vocabulary of p (log p - log q), per token."""
    logp = head.logits(hidden).log_softmax(-1)
    logq = head.logits(ref_hidden).log_softmax(-1)
    return torch.where(logp > -torch.inf, logp.exp() * (logp - logq), 0).sum(-1)


def token_logps_and_kl(hidden: Tensor, ref_hidden: Tensor, head: Head, targets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and KL(policy || reference) over the whole vocabulary, from one pass.

    The head is the same for policy and reference, so the reference distribution of a token is fixed by its final hidden
    state: caching that state gives the exact divergence without a second forward pass.

    Args:
        hidden: `(num_tokens, hidden)`, the policy's final hidden states.
        ref_hidden: `(num_tokens, hidden)`, the reference's, which take no gradient.
        head: The frozen head.
        targets: `(num_tokens,)` int64; -100 gives a log-probability of 0; the KL is computed all the same. Without any,
            all log-probabilities are 0.

    Returns:
        `logps` and `kl`, each `(num_tokens,)` in nats, fp32 (fp64 for fp64 input), both differentiable in `hidden`.
    """

    def chunk(rows: slice, logps: Tensor, kl: Tensor, *slopes: Tensor) -> None:
        logits = head.logits(hidden[rows])
        logp = logits.log_softmax(-1)
        logq = head.logits(ref_hidden[rows]).log_softmax(-1)
        if targets is not None:
            kept = targets[rows] != IGNORE_INDEX
            logps[:] = logp.gather(-1, targets[rows].where(kept, 0)[:, None])[:, 0].where(kept, 0)
        probs = logp.exp()
        gap = logp.clamp_(min=LOWEST).sub_(logq.clamp_(min=LOWEST))
        kl[:] = (probs * gap).sum(-1)
        if slopes:
            logp_slopes, kl_slopes = slopes
            grad_kl = gap.sub_(kl[:, None]).mul_(probs)  # p (log p - log q - KL)
            kl_slopes[:] = head.grad_hidden(grad_kl, logits)
            if targets is not None:
                # Tokens without a target need no slope of their log-probability; to find them a GPU would wait.
                own = kept.nonzero()[:, 0] if kept.device.type == "cpu" else slice(None)
                grad_logps = target_gradient(probs[own], targets[rows][own])
                logp_slopes[own] = head.grad_hidden(grad_logps, logits[own]).to(logp_slopes.dtype)

    logps, kl = fused(hidden, head, 2, chunk)
    return logps, kl
