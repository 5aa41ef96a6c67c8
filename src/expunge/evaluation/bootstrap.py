"""The bootstrap of an aggregate: resampling whole documents, and the interval that the resamples give."""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit

from expunge.utils.roc import Floats

TAIL = 0.025
"""Probability outside the interval on each side."""
RESAMPLES = 2000
BLOCK = 100
"""Resamples that are drawn at a time."""


def bca_interval(value: float, draws: Floats, without: Sequence[Floats]) -> tuple[float, float]:
    """Ends of the bias-corrected and accelerated bootstrap interval, widened for few units.

    Args:
        value: The statistic of all rows.
        draws: The statistic of each resample.
        without: Of every independently resampled set of units, the statistic without each unit in turn.
    """
    influence = [numbers.mean() - numbers for numbers in without]
    spread = np.array([np.square(part).sum() for part in influence])
    if not spread.sum() or not np.ptp(draws):
        return value, value
    units = np.array([part.size for part in influence])
    acceleration = sum((part**3).sum() for part in influence) / (6 * spread.sum() ** 1.5)
    widening = math.sqrt((spread * units / (units - 1)).sum() / spread.sum())
    freedom = spread.sum() ** 2 / (spread**2 / (units - 1)).sum()  # Satterthwaite
    share = np.mean(draws < value) + np.mean(draws == value) / 2
    bias = z_quantile(min(max(float(share), 1 / draws.size), 1 - 1 / draws.size))
    ends = []
    for sign in (-1, 1):
        z = bias + sign * widening * t_quantile(freedom)
        level = float(ndtr(bias + z / (1 - acceleration * z))) if acceleration * z < 1 else (1 + sign) / 2
        ends.append(float(np.quantile(draws, level)))
    return min(ends[0], value), max(ends[1], value)


Ints = NDArray[np.int64]
Stratum = dict[str, tuple[Ints, Ints, Ints]]
"""Groups whose units are resampled together: group -> (row numbers sorted by unit, and of each unit the first place
among these and the number of rows)."""


def strata_of(rows: Mapping[str, Floats], clusters: Mapping[str, Sequence[Hashable]] | None) -> list[Stratum]:
    """The non-empty groups, those that share documents together."""
    names = [name for name, values in rows.items() if values.size]
    labels: dict[str, Sequence[Hashable]] = {}
    for name in names:
        given = (clusters or {}).get(name)
        # A row without a label is a unit of its own, which no other group can share.
        labels[name] = given if given is not None else [(name, None, i) for i in range(rows[name].size)]
    joined: list[tuple[list[str], set[Hashable]]] = []
    for name in names:
        group = ([name], set(labels[name]))
        for other in [pair for pair in joined if pair[1] & group[1]]:
            joined.remove(other)
            group = (other[0] + group[0], other[1] | group[1])
        joined.append(group)
    strata = []
    for members, _ in joined:
        numbers: dict[Hashable, int] = {}
        codes = {name: [numbers.setdefault(label, len(numbers)) for label in labels[name]] for name in members}
        stratum = {}
        for name, own_codes in codes.items():
            sizes = np.bincount(own_codes, minlength=len(numbers))
            stratum[name] = (np.argsort(own_codes, kind="stable"), np.cumsum(sizes) - sizes, sizes)
        strata.append(stratum)
    return strata


def resamples(
    strata: Sequence[Stratum], rows: Mapping[str, Floats], count: int, rng: np.random.Generator
) -> Iterator[dict[str, Floats]]:
    """Every group's values of as many units as there are, drawn with replacement, `count` times.

    A draw that leaves a group empty is made again.
    """
    sizes = [next(iter(stratum.values()))[2].size for stratum in strata]
    for start in range(0, count, BLOCK):
        block = [rng.integers(units, size=(min(BLOCK, count - start), units)) for units in sizes]
        for index in range(len(block[0])):
            drawn: dict[str, Floats] = {}
            for stratum, units, chosen in zip(strata, sizes, block, strict=True):
                sample = _values_of(chosen[index], stratum, rows)
                while not all(values.size for values in sample.values()):
                    sample = _values_of(rng.integers(units, size=units), stratum, rows)
                drawn |= sample
            yield drawn


def leave_one_out(
    stratum: Stratum, rows: Mapping[str, Floats], statistic: Callable[[Mapping[str, Floats]], float]
) -> list[float]:
    """The statistic without each unit of a stratum in turn."""
    everyone = np.arange(next(iter(stratum.values()))[2].size)
    return [statistic({**rows, **_values_of(np.delete(everyone, unit), stratum, rows)}) for unit in everyone]


def _values_of(units: Ints, stratum: Stratum, rows: Mapping[str, Floats]) -> dict[str, Floats]:
    """Group -> its values of the given units, of a unit that is given twice twice."""
    values = {}
    for name, (order, starts, sizes) in stratum.items():
        if order.size == sizes.size and sizes.max() == 1:  # a row a unit
            values[name] = rows[name][order[units]]
            continue
        counts = sizes[units]
        ends = counts.cumsum()
        places = (starts[units] - ends + counts).repeat(counts)
        places += np.arange(places.size)
        values[name] = rows[name][order[places]]
    return values


def z_quantile(level: float) -> float:
    """The normal distribution's quantile."""
    return float(ndtri(level))


def t_quantile(freedom: float) -> float:
    """Student's quantile of a 95 % interval."""
    return float(stdtrit(freedom, 1 - TAIL))
