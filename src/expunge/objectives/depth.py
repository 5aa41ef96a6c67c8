"""How hard tokens are still to be pushed, so that they end as unlikely as those of unseen texts, and not beyond."""

from torch import Tensor

RAMP = 0.5
"""Tokens are pushed at full weight while they lack this share of the depth or more."""


def push(logps: Tensor, groups: Tensor, *, depth: float) -> Tensor:
    """The share of NPO's weight that each group of tokens has, from its own mean loss.

    `min(1, max(0, (1 - nll / depth) / RAMP))`: all of it while the group lacks `RAMP` of the depth or more, less and
    less from there, nothing at the depth and beyond. A factor without a gradient of its own.

    Args:
        logps: `(tokens,)`, the policy's log-probabilities (nats) of the forget tokens.
        groups: `(tokens,)` int64, from 0: the group of each token; all tokens of a group must be in this call.
        depth: Mean loss that a forgotten text should have (nats per token), above 0.

    Returns:
        `(groups,)`, between 0 and 1; 1 for a number that no token has.
    """
    counts = groups.bincount()
    nll = logps.new_zeros(len(counts)).index_add(0, groups, -logps.detach()) / counts.clamp(min=1)
    return ((1 - nll / depth) / RAMP).clamp(0, 1)
