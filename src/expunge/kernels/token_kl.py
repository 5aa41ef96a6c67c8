"""Exact full-vocabulary KL per token against cached reference hidden states, with the log-probabilities on the way."""

from typing import Literal

import torch
from torch import Tensor

from expunge.kernels.head import LOWEST, Head, fused
from expunge.kernels.token_logps import IGNORE_INDEX, target_gradient

Direction = Literal["reverse", "forward"]


def plain_token_kl(hidden: Tensor, ref_hidden: Tensor, head: Head, direction: Direction = "reverse") -> Tensor:
    """The formula that `token_logps_and_kl` equals: sum over the vocabulary of p (log p - log q), per token.

    `reverse` is KL(policy || reference), `forward` is KL(reference || policy).
    """
    logp = head.logits(hidden).log_softmax(-1)
    logq = head.logits(ref_hidden).log_softmax(-1)
    if direction == "forward":
        logp, logq = logq, logp
    return torch.where(logp > -torch.inf, logp.exp() * (logp - logq), 0).sum(-1)


def token_logps_and_kl(
    hidden: Tensor, ref_hidden: Tensor, head: Head, targets: Tensor | None, direction: Direction = "reverse"
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and KL over the whole vocabulary, from one pass over the logits.

    The head is the same for policy and reference, so the reference distribution of a token is fixed by its final hidden
    state: caching that state gives the exact divergence without a second forward pass.

    Args:
        hidden: `(num_tokens, hidden)`, the policy's final hidden states.
        ref_hidden: `(num_tokens, hidden)`, the reference's, which take no gradient.
        head: The frozen head.
        targets: `(num_tokens,)` int64; -100 gives a log-probability of 0; the KL is computed all the same. Without any,
            all log-probabilities are 0.
        direction: `reverse` for KL(policy || reference), `forward` for KL(reference || policy).

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
        logp, logq = logp.clamp_(min=LOWEST), logq.clamp_(min=LOWEST)
        if direction == "reverse":  # d KL(p||q) / d logits = p (log p - log q - KL)
            gap = logp.sub_(logq)
            kl[:] = (probs * gap).sum(-1)
            grad_kl = gap.sub_(kl[:, None]).mul_(probs)
        else:  # d KL(q||p) / d logits = p - q
            ref_probs = logq.exp()
            kl[:] = (ref_probs * logq.sub_(logp)).sum(-1)
            grad_kl = probs - ref_probs
        if slopes:
            logp_slopes, kl_slopes = slopes
            kl_slopes[:] = head.grad_hidden(grad_kl, logits)
            if targets is not None:
                # Tokens without a target need no slope of their log-probability; to find them a GPU would wait.
                own = kept.nonzero()[:, 0] if kept.device.type == "cpu" else slice(None)
                grad_logps = target_gradient(probs[own], targets[rows][own])
                logp_slopes[own] = head.grad_hidden(grad_logps, logits[own]).to(logp_slopes.dtype)

    logps, kl = fused(hidden, head, 2, chunk)
    return logps, kl
