"""Intervals and tests: how far a measured number can be trusted.

All intervals are at 95 %. Rows about one document are not independent, so wherever clusters are given, whole clusters
are resampled. Arrays in, numbers out; no torch.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, ndtr, ndtri, stdtrit

from expunge.errors import DataError

LEVEL = 0.95
RESAMPLES = 2000
Z = float(ndtri((1 + LEVEL) / 2))


@dataclass(frozen=True)
class Estimate:
    """A measured number with its 95 % interval.

    Attributes:
        value: The number; NaN where nothing was measured.
        low: Lower end of the interval; NaN where it cannot be known (fewer than two independent units).
        high: Upper end.
        n: Rows that the number rests on.
    """

    value: float
    low: float
    high: float
    n: int


def mean_estimate(
    values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable] | None = None, *, seed: int = 0
) -> Estimate:
    """Mean over rows, with a bootstrap interval.

    Args:
        values: One number per row.
        clusters: Label of each row's document; rows of one label are resampled together. Every row on its own when
            None.
        seed: Of the resampling.

    Raises:
        DataError: A value is not finite, or `clusters` has another length.
    """
    rows = _finite("values", values)
    return _mean(rows, _codes(clusters, rows, "clusters"), seed)


def difference_estimate(
    before: Sequence[float] | np.ndarray,
    after: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
) -> Estimate:
    """Mean of `after - before` over the same rows in the same order.

    Raises:
        DataError: As `mean_estimate`, or the two have different lengths.
    """
    first, second = _finite("before", before), _finite("after", after)
    if first.size != second.size:
        raise DataError(
            f"before has {first.size} rows and after {second.size}: a paired difference needs the same rows"
        )
    return _mean(second - first, _codes(clusters, first, "clusters"), seed)


def statistic_estimate(
    groups: Mapping[str, Sequence[float] | np.ndarray],
    statistic: Callable[[Mapping[str, np.ndarray]], float],
    clusters: Mapping[str, Sequence[Hashable]] | None = None,
    *,
    seed: int = 0,
) -> Estimate:
    """Any aggregate of groups of rows (a harmonic mean of group means, say), with a bootstrap interval.

    Args:
        groups: Group -> one number per row.
        statistic: The aggregate, of the groups as arrays.
        clusters: Group -> label of each row's document. A label in several groups is one document, whose rows are
            resampled together.
        seed: Of the resampling.

    Raises:
        DataError: A value is not finite, or labels do not match the rows.
    """
    rows = {name: _finite(f"group {name}", values) for name, values in groups.items()}
    value, n = float(statistic(rows)), sum(values.size for values in rows.values())
    if not math.isfinite(value):
        return Estimate(math.nan, math.nan, math.nan, n)
    strata = _strata(rows, clusters)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(RESAMPLES):
        picks: dict[str, list[np.ndarray]] = {name: [] for name in rows}
        for names, members in strata:
            chosen = rng.integers(len(members[names[0]]), size=len(members[names[0]]))
            for name in names:
                picks[name].extend(members[name][i] for i in chosen)
        draws.append(
            statistic({name: rows[name][np.concatenate(own)] if own else rows[name] for name, own in picks.items()})
        )
    low, high = _percentiles(np.array(draws, dtype=float), sum(len(members[names[0]]) for names, members in strata))
    return Estimate(value, min(low, value), max(high, value), n)


def auc(members: Sequence[float] | np.ndarray, nonmembers: Sequence[float] | np.ndarray) -> float:
    """Probability that a member scores higher than a non-member, a tie counting one half; NaN if a side is empty.

    Raises:
        DataError: A score is not finite.
    """
    return _placements(_finite("members", members), _finite("nonmembers", nonmembers))[0]


def auc_estimate(members: Sequence[float] | np.ndarray, nonmembers: Sequence[float] | np.ndarray) -> Estimate:
    """`auc` with DeLong's interval on the logit scale; `n` counts both sides.

    Raises:
        DataError: A score is not finite.
    """
    inside, outside = _finite("members", members), _finite("nonmembers", nonmembers)
    value, above, below = _placements(inside, outside)
    m, n = inside.size, outside.size
    if math.isnan(value):
        return Estimate(value, math.nan, math.nan, 0)
    if min(m, n) < 2:
        return Estimate(value, math.nan, math.nan, m + n)
    variance = above.var(ddof=1) / m + below.var(ddof=1) / n
    if variance == 0:
        low, high = _clopper_pearson(value, min(m, n))
    else:
        half = Z * math.sqrt(variance) / (value * (1 - value))
        logit = math.log(value / (1 - value))
        low, high = _expit(logit - half), _expit(logit + half)
    return Estimate(value, low, high, m + n)


def tpr_at_fpr(members: Sequence[float] | np.ndarray, nonmembers: Sequence[float] | np.ndarray, fpr: float) -> float:
    """Largest share of members found by a threshold that flags at most the share `fpr` of the non-members.

    Raises:
        DataError: A score is not finite.
    """
    inside, outside = _finite("members", members), _finite("nonmembers", nonmembers)
    if not inside.size or not outside.size:
        return math.nan
    thresholds = np.sort(outside)[::-1]
    allowed = math.floor(fpr * outside.size + 1e-9)  # 0.29 * 100 is a little less than 29
    return 1.0 if allowed >= outside.size else float(np.mean(inside > thresholds[allowed]))


def tpr_estimate(
    members: Sequence[float] | np.ndarray, nonmembers: Sequence[float] | np.ndarray, fpr: float, *, seed: int = 0
) -> Estimate:
    """`tpr_at_fpr` with an interval.

    Raises:
        DataError: A score is not finite.
    """
    inside, outside = _finite("members", members), _finite("nonmembers", nonmembers)
    value = tpr_at_fpr(inside, outside, fpr)
    if math.isnan(value):
        return Estimate(value, math.nan, math.nan, 0)
    m, n = inside.size, outside.size
    if min(m, n) < 2:
        return Estimate(value, math.nan, math.nan, m + n)
    # How many members lie above each non-member, from the highest down; none above infinity, all above -infinity.
    found = np.concatenate([[0], m - np.searchsorted(np.sort(inside), np.sort(outside)[::-1], side="right"), [m]])
    rng = np.random.default_rng(seed)
    exceed = rng.binomial(n, fpr, size=RESAMPLES)
    low = np.quantile(_beta_draws(found[exceed], m, rng), (1 - LEVEL) / 2)
    high = np.quantile(_beta_draws(found[exceed + 1], m, rng), (1 + LEVEL) / 2)
    return Estimate(value, min(float(low), value), max(float(high), value), m + n)


def ks_pvalue(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """P-value of the two-sided two-sample Kolmogorov-Smirnov test; NaN if a side is empty.

    Raises:
        DataError: A value is not finite.
    """
    first, second = _finite("a", a), _finite("b", b)
    if not first.size or not second.size:
        return math.nan
    from scipy.stats import ks_2samp  # takes a second to import

    return float(ks_2samp(first, second).pvalue)


def pooled(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Mean, standard deviation (n - 1 in the denominator) and number of several runs' values.

    Raises:
        DataError: A value is not finite.
    """
    runs = _finite("values", values)
    return {
        "mean": float(runs.mean()) if runs.size else math.nan,
        "std": float(runs.std(ddof=1)) if runs.size > 1 else math.nan,
        "n": runs.size,
    }


def _finite(name: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    """The values as a one-dimensional float64 array, once all are finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise DataError(f"{name}: one number per row is needed, and this has {array.ndim} dimensions")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise DataError(
            f"{name}: {bad.size} of {array.size} values are not finite (the first is number {bad[0] + 1}, "
            f"{array[bad[0]]}): leave out what was not measured"
        )
    return array


def _codes(clusters: Sequence[Hashable] | None, rows: np.ndarray, name: str) -> np.ndarray:
    """Number of each row's cluster, from 0."""
    if clusters is None:
        return np.arange(rows.size)
    if len(clusters) != rows.size:
        raise DataError(f"{name}: {len(clusters)} labels for {rows.size} rows")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in clusters], dtype=np.int64)


def _mean(rows: np.ndarray, codes: np.ndarray, seed: int) -> Estimate:
    if not rows.size:
        return Estimate(math.nan, math.nan, math.nan, 0)
    value = float(rows.mean())
    sums, sizes = np.bincount(codes, rows), np.bincount(codes)
    if sums.size < 2:
        return Estimate(value, math.nan, math.nan, rows.size)
    chosen = np.random.default_rng(seed).integers(sums.size, size=(RESAMPLES, sums.size))
    low, high = _percentiles(sums[chosen].sum(axis=1) / sizes[chosen].sum(axis=1), sums.size)
    return Estimate(value, min(low, value), max(high, value), rows.size)


def _percentiles(draws: np.ndarray, units: int) -> tuple[float, float]:
    """Ends of the interval of a bootstrap distribution, widened for few units (Hesterberg 2015)."""
    tail = float(ndtr(math.sqrt(units / (units - 1)) * stdtrit(units - 1, (1 - LEVEL) / 2)))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _strata(
    rows: Mapping[str, np.ndarray], clusters: Mapping[str, Sequence[Hashable]] | None
) -> list[tuple[tuple[str, ...], dict[str, list[np.ndarray]]]]:
    """Clusters by the set of groups that they have rows in: (groups, group -> row numbers of each cluster)."""
    places: dict[Hashable, dict[str, list[int]]] = {}
    for name, values in rows.items():
        labels = (clusters or {}).get(name)
        codes = [(name, i) for i in range(values.size)] if labels is None else list(labels)
        if len(codes) != values.size:
            raise DataError(f"group {name}: {len(codes)} labels for {values.size} rows")
        for index, label in enumerate(codes):
            places.setdefault(label, {}).setdefault(name, []).append(index)
    strata: dict[tuple[str, ...], dict[str, list[np.ndarray]]] = {}
    for own in places.values():
        stratum = strata.setdefault(tuple(own), {name: [] for name in own})
        for name, indices in own.items():
            stratum[name].append(np.array(indices))
    return list(strata.items())


def _placements(inside: np.ndarray, outside: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The AUC, each member's share of lower non-members, and each non-member's share of higher members."""
    if not inside.size or not outside.size:
        return math.nan, np.empty(0), np.empty(0)
    ordered, above = np.sort(outside), np.sort(inside)
    # Half-wins are whole numbers, so nothing is rounded before the division.
    wins = np.searchsorted(ordered, inside, "left") + np.searchsorted(ordered, inside, "right")
    losses = np.searchsorted(above, outside, "left") + np.searchsorted(above, outside, "right")
    value = int(wins.sum()) / (2 * inside.size * outside.size)
    return value, wins / (2 * outside.size), 1 - losses / (2 * inside.size)


def _clopper_pearson(share: float, n: float) -> tuple[float, float]:
    """Exact interval of a share of n trials, n not necessarily whole."""
    hits, tail = share * n, (1 - LEVEL) / 2
    low = float(betaincinv(hits, n - hits + 1, tail)) if hits > 0 else 0.0
    high = float(betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0
    return low, high


def _beta_draws(hits: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """A draw of the true share for each count out of n (Jeffreys' prior); exactly 0 or 1 where all or none hit."""
    draws = rng.beta(hits + 0.5, n - hits + 0.5)
    return np.where(hits == 0, 0.0, np.where(hits == n, 1.0, draws))


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x))
