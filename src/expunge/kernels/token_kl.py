"""Exact full-vocabulary KL per token against cached reference hidden states, with the log-probabilities on the way."""

import torch
from torch import Tensor

from expunge.kernels.head import LOWEST, Head, fused
from expunge.kernels.token_logps import Targets


def plain_token_kl(hidden: Tensor, ref_hidden: Tensor, head: Head) -> Tensor:
    """The formula that `token_kl` equals: sum over the vocabulary of p (log p - log q), per token."""
    logp = head.logits(hidden).log_softmax(-1)
    logq = head.logits(ref_hidden).log_softmax(-1)
    return torch.where(logp > -torch.inf, logp.exp() * (logp - logq), 0).sum(-1)


def token_kl(hidden: Tensor, ref_hidden: Tensor, head: Head) -> Tensor:
    """KL(policy || reference) over the whole vocabulary, of each token.

    The head is the same for policy and reference, so the reference distribution of a token is fixed by its final hidden
    state: caching that state gives the exact divergence without a second forward pass.

    Args:
        hidden: `(num_tokens, hidden)`, the policy's final hidden states.
        ref_hidden: `(num_tokens, hidden)`, the reference's, which take no gradient.
        head: The frozen head.

    Returns:
        `(num_tokens,)` in nats, fp32 (fp64 for fp64 input), differentiable in `hidden`.
    """

    def chunk(rows: slice, slopes: bool) -> list[Tensor]:
        logits = head.logits(hidden[rows])
        kl, grad, _ = _divergence(logits.log_softmax(-1), head.logits(ref_hidden[rows]).log_softmax(-1), slopes)
        return [kl, head.grad_hidden(grad, logits)] if slopes else [kl]

    (kl,) = fused(hidden, head, 1, chunk)
    return kl


def token_logps_and_kl(hidden: Tensor, ref_hidden: Tensor, head: Head, targets: Tensor) -> tuple[Tensor, Tensor]:
    """`token_logps` and `token_kl` from one pass.

    Args:
        hidden: As of `token_kl`.
        ref_hidden: As of `token_kl`.
        head: The frozen head.
        targets: `(num_tokens,)` int64; -100 gives a log-probability of 0; the KL is computed all the same.

    Returns:
        `logps` and `kl`, each `(num_tokens,)` in nats, fp32 (fp64 for fp64 input), both differentiable in `hidden`.
    """
    all_targets = Targets.of(targets)

    def chunk(rows: slice, slopes: bool) -> list[Tensor]:
        logits, picked = head.logits(hidden[rows]), all_targets[rows]
        logp = logits.log_softmax(-1)
        logps = picked.values(logp)
        kl, grad, probs = _divergence(logp, head.logits(ref_hidden[rows]).log_softmax(-1), slopes)
        if not slopes:
            return [logps, kl]
        kl_slopes = head.grad_hidden(grad, logits)
        if probs.device.type != "cpu":
            return [logps, kl, head.grad_hidden(picked.gradient(probs), logits), kl_slopes]
        # Tokens without a target need no slope of their log-probability; to find them a GPU would wait.
        kept = (~picked.ignored).nonzero()[:, 0]
        logp_slopes = head.grad_hidden(picked[kept].gradient(probs[kept]), logits[kept])
        return [logps, kl, torch.zeros_like(kl_slopes).index_copy_(0, kept, logp_slopes), kl_slopes]

    logps, kl = fused(hidden, head, 2, chunk)
    return logps, kl


def _divergence(logp: Tensor, logq: Tensor, slopes: bool) -> tuple[Tensor, Tensor, Tensor]:
    """KL `(rows,)`, its gradient by the logits, p (log p - log q - KL), where wanted, and p. Overwrites both."""
    probs = logp.exp()
    gap = logp.clamp_(min=LOWEST).sub_(logq.clamp_(min=LOWEST))
    kl = (probs * gap).sum(-1)
    return kl, gap.sub_(kl[:, None]).mul_(probs) if slopes else gap, probs
