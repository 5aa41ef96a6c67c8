"""How hard a text is still to be pushed, so that it ends as unlikely as a text that was never seen, and not beyond."""

from torch import Tensor

RAMP = 0.5
"""A text is pushed at full weight while it lacks this share of the depth or more."""


def push(logps: Tensor, sequence_ids: Tensor, *, depth: float) -> Tensor:
    """The share of NPO's weight that each text has, from its own loss.

    `min(1, max(0, (1 - nll / depth) / RAMP))`: all of it while the text lacks `RAMP` of the depth or more, less and
    less from there, nothing at the depth and beyond. A factor without a gradient of its own.

    Args:
        logps: `(tokens,)`, the policy's log-probabilities (nats) of the forget tokens.
        sequence_ids: `(tokens,)` int64, the text of each token: 0, 1, ... without a gap; all tokens of a text must be
            in this call.
        depth: Mean loss that a forgotten text should have (nats per token), above 0.

    Returns:
        `(texts,)`, between 0 and 1.
    """
    present = int(sequence_ids.max()) + 1
    nll = logps.new_zeros(present).index_add(0, sequence_ids, -logps.detach()) / sequence_ids.bincount()
    return ((1 - nll / depth) / RAMP).clamp(0, 1)
