"""How hard tokens are to be pushed, so that they end as unlikely as those of unseen texts, and not beyond."""

from torch import Tensor

RAMP = 0.5
"""Tokens are pushed at full weight while they lack this share of the depth or more."""

CLEAREST = 0.1
"""Tokens that are surer than one minus this are pushed no harder than by its inverse."""


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


def push_odds(logps: Tensor, shares: Tensor) -> Tensor:
    """A push on log-odds where a text has far to go, on log-probabilities where it is nearly there.

    The gradient of log p with respect to the token's logit is 1 - p, hardly anything for a text known by heart, whose
    surest tokens are then the last to move; that of log(p / (1 - p)) is 1. But pushed to the end like that, a text has
    no unlikely tokens left, as unseen ones have. So a token's share is `share / max(1 - p, CLEAREST) ** share`.

    Args:
        logps: `(tokens,)`, the policy's log-probabilities (nats).
        shares: `(tokens,)`, from 0 to 1, of the token's group (`push`).

    Returns:
        `(tokens,)`, from 0 to `1 / CLEAREST`; takes no gradient.
    """
    return shares / (-logps.detach().expm1()).clamp(min=CLEAREST) ** shares
