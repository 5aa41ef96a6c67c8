"""How hard tokens are still to be pushed, so that they end as unlikely as those of unseen texts, and not beyond."""

import torch
from torch import Tensor

RAMP = 0.5
"""Tokens are pushed at full weight while they lack this share of the depth or more."""


def push(logps: Tensor, groups: Tensor, *, depth: float, capped_depth: float, cap: float) -> Tensor:
    """The share of NPO's weight that each group of tokens has, from its own loss.

    `min(1, max(0, (1 - nll / depth) / RAMP))`: all of it while the group lacks `RAMP` of the depth or more, less and
    less from there, nothing at the depth and beyond. The same of the capped loss, the mean of min(nll, cap), and the
    larger counts: a token that is far beyond the depth does not stand in for one that is still known, as the end of an
    answer for its beginning. A factor without a gradient of its own.

    Args:
        logps: `(tokens,)`, the policy's log-probabilities (nats) of the forget tokens.
        groups: `(tokens,)` int64, from 0: the group of each token; all tokens of a group must be in this call.
        depth: Mean loss that a forgotten text should have (nats per token), above 0.
        capped_depth: Mean capped loss that it should have, above 0.
        cap: Most that a token counts in it (nats).

    Returns:
        `(groups,)`, between 0 and 1; 1 for a number that no token has.
    """
    nll, counts = -logps.detach(), groups.bincount()

    def lack(losses: Tensor, aim: float) -> Tensor:
        return 1 - losses.new_zeros(len(counts)).index_add(0, groups, losses) / counts.clamp(min=1) / aim

    return (torch.maximum(lack(nll, depth), lack(nll.clamp(max=cap), capped_depth)) / RAMP).clamp(0, 1)
