"""How hard tokens are to be pushed, so that they end as unlikely as those of unseen texts, and not beyond."""

from torch import Tensor

RAMP = 0.35
"""Tokens are pushed at full weight while they lack this share of the depth or more."""

CLEAREST = 0.1
"""Tokens that are surer than one minus this are pushed no harder than by its inverse."""

LEAST_WEIGHT = 1e-4
"""The mean weight in NPO of a group counts as this where it is less."""


def push(logps: Tensor, depths: Tensor, groups: Tensor, pull: float = 0.0) -> Tensor:
    """The share of NPO's weight that each group of tokens has, from its own mean loss.

    `min(1, max(-pull, (1 - nll / depth) / RAMP))`, with the group's means of both: all of it while the group lacks
    `RAMP` of its depth or more, less and less from there, nothing at the depth; beyond, as much as `pull` backwards. A
    factor without a gradient of its own.

    Args:
        logps: `(tokens,)`, the policy's log-probabilities (nats) of the forget tokens.
        depths: `(tokens,)`, loss that each of them would have in a text that was never seen (nats), above 0.
        groups: `(tokens,)` int64, from 0: the group of each token; all tokens of a group must be in this call.
        pull: From 0 to 1.

    Returns:
        `(groups,)`, between -pull and 1; 1 for a number that no token has.
    """
    present = len(groups.bincount())
    nll = logps.new_zeros(present).index_add(0, groups, -logps.detach())
    depth = logps.new_zeros(present).index_add(0, groups, depths)
    return ((1 - nll / depth.where(depth > 0, 1)) / RAMP).clamp(-pull, 1)


def push_odds(logps: Tensor, shares: Tensor) -> Tensor:
    """A push on log-odds where a text has far to go, on log-probabilities where it is nearly there.

    The gradient of log p with respect to the token's logit is 1 - p, hardly anything for a text known by heart, whose
    surest tokens are then the last to move; that of log(p / (1 - p)) is 1. But pushed to the end like that, a text has
    no unlikely tokens left, as unseen ones have. So a token's share is `share / max(1 - p, CLEAREST) ** share`.

    Args:
        logps: `(tokens,)`, the policy's log-probabilities (nats).
        shares: `(tokens,)`, from -1 to 1, of the token's group (`push`).

    Returns:
        `(tokens,)`, from -1 to `1 / CLEAREST`; takes no gradient.
    """
    return shares / (-logps.detach().expm1()).clamp(min=CLEAREST) ** shares


def spread(logps: Tensor, ref_logps: Tensor, groups: Tensor, *, beta: float) -> Tensor:
    """How a group's push is spread over its tokens: their weights in NPO, over the mean of the group.

    A token's weight in the gradient of NPO is `2 sigmoid(-beta (ref_logp - logp))` (arXiv 2404.05868): it falls as the
    token becomes less likely, or grows where beta is below 0. The share of the group (`push`) says already how hard it
    is to be pushed; so beta is left to say how evenly, and may be changed without a jump.

    Args:
        logps: `(tokens,)`, the policy's log-probabilities (nats) of the forget tokens.
        ref_logps: `(tokens,)`, the reference's.
        groups: `(tokens,)` int64, from 0: the group of each token; all tokens of a group must be in this call.
        beta: Inverse temperature.

    Returns:
        `(tokens,)`, 1 on average over a group whose mean weight is not below `LEAST_WEIGHT`; takes no gradient.
    """
    weights = 2 * (-beta * (ref_logps - logps.detach())).sigmoid()
    counts = groups.bincount()
    mean = weights.new_zeros(len(counts)).index_add(0, groups, weights) / counts.clamp(min=1)
    return weights / mean.clamp(min=LEAST_WEIGHT)[groups]


def insistence(logps: Tensor, groups: Tensor, *, most: float) -> Tensor:
    """How much harder each group of tokens is pushed, by how surely greedy decoding says it.

    `1 + (most - 1) c`, where c is twice the probability of the least likely token of the group, at most 1: a token of
    more than a half is the one that is said. So what is said no longer is pushed as before.

    Args:
        logps: `(tokens,)`, the policy's log-probabilities (nats) of the forget tokens.
        groups: `(tokens,)` int64, from 0: the group of each token; all tokens of a group must be in this call.
        most: Factor for a group that is said for certain, at least 1.

    Returns:
        `(groups,)`, from 1 to `most`; `most` for a number that no token has. Takes no gradient.
    """
    least = logps.new_zeros(len(groups.bincount())).scatter_reduce(0, groups, logps.detach(), "amin")
    return 1 + (most - 1) * (2 * least.exp()).clamp(max=1)


def pushed(logps: Tensor, weights: Tensor, *, num_tokens: int | None = None) -> Tensor:
    """The term whose gradient pushes each token by its weight: mean_t weight_t logp_t.

    With the weights of NPO (`spread`) this is the gradient of NPO, and its value is how likely what is still pushed is.

    Args:
        logps: `(tokens,)`, the policy's log-probabilities (nats) of the forget tokens.
        weights: `(tokens,)`, without a gradient.
        num_tokens: Denominator; the number of tokens in `logps` when None.
    """
    return (weights * logps).sum() / (num_tokens or logps.numel())
