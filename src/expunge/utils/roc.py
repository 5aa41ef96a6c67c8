"""The area under the ROC curve, from scores alone."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from expunge.errors import DataError

Floats = NDArray[np.float64]
"""Numbers, float64."""


def auc(members: Sequence[float] | Floats, nonmembers: Sequence[float] | Floats) -> float:
    """Probability that a member scores higher than a non-member, a tie counting one half; NaN if a side is empty.

    Raises:
        DataError: A score is not finite.
    """
    return placements(finite("members", members), finite("nonmembers", nonmembers))[0]


def chance_sd(members: float, nonmembers: float) -> float:
    """Standard deviation of the AUC of so many scores that nothing tells apart (Mann and Whitney 1947)."""
    return math.sqrt((members + nonmembers + 1) / (12 * members * nonmembers))


def placements(inside: Floats, outside: Floats) -> tuple[float, Floats, Floats]:
    """The AUC, each member's share of lower non-members, and each non-member's share of higher members."""
    if not inside.size or not outside.size:
        return math.nan, np.empty(0), np.empty(0)
    ordered, members = np.sort(outside), np.sort(inside)
    # Half-wins are whole numbers, so nothing is rounded before the division.
    wins = np.searchsorted(ordered, inside, "left") + np.searchsorted(ordered, inside, "right")
    losses = np.searchsorted(members, outside, "left") + np.searchsorted(members, outside, "right")
    value = int(wins.sum()) / (2 * inside.size * outside.size)
    return value, wins / (2 * outside.size), 1 - losses / (2 * inside.size)


def finite(name: str, values: Sequence[float] | Floats) -> Floats:
    """The values as a one-dimensional float64 array, once all are finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise DataError(f"{name}: one number per row is needed, and this has {array.ndim} dimensions")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise DataError(
            f"{name}: {bad.size} of {array.size} values are not finite (first is number {bad[0] + 1}: {array[bad[0]]}):"
            " leave out what was not measured"
        )
    return array
