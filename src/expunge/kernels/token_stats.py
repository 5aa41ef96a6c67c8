"""What one softmax says about its target, without a tensor of (tokens, vocab): log-probability, hit and moments."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from expunge.kernels.head import Head


class TokenStats(NamedTuple):
    """One value per token, each `(num_tokens,)`; p is the distribution over the vocabulary, y the target.

    Attributes:
        logps: log p(y), nats.
        hits: bool, whether y is what `argmax` gives: no logit is larger, and of equal ones it is the first.
        mean_logp: mu = sum_v p(v) log p(v), nats: the mean of log p under p, minus the entropy.
        var_logp: sum_v p(v) (log p(v) - mu)^2, nats squared.
    """

    logps: Tensor
    hits: Tensor
    mean_logp: Tensor
    var_logp: Tensor


def plain_token_stats(hidden: Tensor, head: Head, targets: Tensor) -> TokenStats:
    """The formulas that `token_stats` equals, written out."""
    logits = head.logits(hidden)
    logp = logits.log_softmax(-1)
    probs = logp.exp()
    mean = (probs * logp).sum(-1)
    variance = (probs * (logp - mean[:, None]).square()).sum(-1)
    hits = logits.argmax(-1) == targets
    return TokenStats(logp.gather(-1, targets[:, None])[:, 0], hits, mean, variance)


@torch.no_grad()
def token_stats(hidden: Tensor, head: Head, targets: Tensor) -> TokenStats:
    """Log-probability, hit and the first two moments of log p for each target; takes no gradient.

    Equals `plain_token_stats`, in few passes over a block that fits into the cache.

    Args:
        hidden: `(num_tokens, hidden)`, final hidden states of the positions that predict the targets.
        head: The vocabulary head.
        targets: `(num_tokens,)` int64, all of them token ids (nothing is ignored).

    Returns:
        fp32 (fp64 for fp64 input), the hits bool.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logps, means, variances = (hidden.new_empty(hidden.shape[0], dtype=dtype) for _ in range(3))
    hits = torch.empty_like(targets, dtype=torch.bool)
    entries = torch.arange(head.vocab_size(hidden), device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        for rows in head.chunks(hidden):
            logits = head.logits(hidden[rows])
            picked = logits.gather(-1, targets[rows, None])
            top = logits.amax(-1, keepdim=True)
            first = torch.where(logits == top, entries, len(entries)).amin(-1)  # as argmax, which is slow on the CPU
            # A logit of -inf has probability 0 and counts 0; what exp rounds to 0 is held where 0 times it is 0 too.
            gaps = torch.sub(logits, top, out=logits if head.weight is not None else None)  # given logits are kept
            gaps.clamp_(min=math.log(torch.finfo(logits.dtype).tiny))
            weights = gaps.exp()
            total = weights.sum(-1)
            log_norm = total.log()
            logps[rows] = (picked - top)[:, 0] - log_norm
            hits[rows] = first == targets[rows]
            mean = torch.linalg.vecdot(weights, gaps) / total
            means[rows] = mean - log_norm
            gaps.sub_(mean[:, None])
            variances[rows] = weights.mul_(gaps).mul_(gaps).sum(-1) / total
    return TokenStats(logps, hits, means, variances)
