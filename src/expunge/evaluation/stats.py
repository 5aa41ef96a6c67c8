"""Intervals and tests: how far a measured number can be trusted.

All intervals are at 95 %. Rows about one document are not independent, so wherever clusters are given, a document
counts as one unit. Arrays in, numbers out; no torch.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation.bootstrap import (
    RESAMPLES,
    TAIL,
    bca_interval,
    leave_one_out,
    resamples,
    strata_of,
    t_quantile,
    z_quantile,
)
from expunge.evaluation.estimate import NAN, ONE_TEXT, Estimate
from expunge.utils.roc import Floats, finite, placements

SEED = 0
"""Of all resampling: the same rows have the same interval."""
BLOCK = 2_000_000
"""Cluster draws that are held in memory at a time."""
LOG_UNITS = 6
"""Documents from which on positive values alone are taken as a sign that there are no others (1 in 64 by chance)."""


ONE = "all its rows are about one document, so how far it can be trusted is not known"
NO_ROWS = "no row has it"
ONE_SIDE = "one side has no texts"
"""Why a number or its interval is missing."""


def mean_estimate(
    values: Sequence[float] | Floats,
    clusters: Sequence[Hashable] | None = None,
    *,
    weights: Sequence[float] | None = None,
) -> Estimate:
    """Mean over rows, with an interval that takes documents as the unit.

    Values that all lie in [0, 1] (shares, ROUGE, probabilities) get a score interval (Wilson 1927) at the effective
    number of rows that their variance between documents amounts to (Korn & Graubard 1998), with Student's quantile for
    the number of documents: a bootstrap of twenty zeros and a one covers far less than it says, and of zeros alone it
    is a point. Other values get the outer ends of two intervals, the bias-corrected and accelerated bootstrap of
    documents (Efron 1987, widened for few units as in Hesterberg 2015) and the jackknife's t interval, on the log scale
    where all values of six or more documents are positive.

    Args:
        values: One number per row.
        clusters: Label of each row's document; every row is its own when None.
        weights: How much each row counts, above 0; all the same when None.

    Raises:
        DataError: A value is not finite.
    """
    rows = finite("values", values)
    return _mean(rows, _codes(clusters, rows.size), _weights(weights, rows.size))


def difference_estimate(
    before: Sequence[float] | Floats,
    after: Sequence[float] | Floats,
    clusters: Sequence[Hashable] | None = None,
    *,
    weights: Sequence[float] | None = None,
) -> Estimate:
    """Mean of `after - before` over the same rows in the same order.

    Where all values lie in [0, 1], the two means' score intervals are joined by their correlation (Newcombe 1998,
    method 10, with documents as the unit); other differences are treated as `mean_estimate` treats values.

    Raises:
        DataError: A value is not finite.
    """
    first, second = finite("before", before), finite("after", after)
    codes, weighing = _codes(clusters, first.size), _weights(weights, first.size)
    if first.size and codes.max() > 0 and _in_unit_range(first) and _in_unit_range(second):
        return _unit_difference(first, second, codes, weighing)
    return _mean(second - first, codes, weighing)


def statistic_estimate(
    groups: Mapping[str, Sequence[float] | Floats],
    statistic: Callable[[Mapping[str, Floats]], float],
    clusters: Mapping[str, Sequence[Hashable]] | None = None,
) -> Estimate:
    """Any aggregate of groups of rows (a harmonic mean of group means, say), with a bootstrap interval.

    Bias-corrected and accelerated bootstrap; groups are resampled apart from each other, save those that share
    documents. A group whose rows are all alike adds no spread, so an aggregate that such a group fixes (a harmonic mean
    with a zero) has a point for an interval.

    Args:
        groups: Group -> one number per row.
        statistic: The aggregate, of the groups as arrays.
        clusters: Group -> label of each row's document; every row is its own in a group that is left out. One label in
            several groups is one document, whose rows are resampled together.

    Returns:
        The aggregate. Its interval is NaN if a group has rows of one document only, or a resample has no finite value.

    Raises:
        DataError: A value is not finite.
    """
    rows = {name: finite(f"group {name}", values) for name, values in groups.items()}
    n = sum(values.size for values in rows.values())
    value = float(statistic(rows)) if n else math.nan
    if not math.isfinite(value):
        return Estimate(NAN, n=n, reason="a part of it has no number" if n else NO_ROWS)
    unknown = Estimate(value, n=n, reason=ONE)
    strata = strata_of(rows, clusters)
    if any(np.count_nonzero(sizes) < 2 for stratum in strata for _, _, sizes in stratum.values()):
        return unknown
    rng = np.random.default_rng(SEED)
    draws = np.array([statistic({**rows, **drawn}) for drawn in resamples(strata, rows, RESAMPLES, rng)], dtype=float)
    without = [np.array(leave_one_out(stratum, rows, statistic), dtype=float) for stratum in strata]
    if not all(np.isfinite(numbers).all() for numbers in (draws, *without)):
        return Estimate(value, n=n, reason="some resamples of the rows have no number")
    return Estimate(value, *bca_interval(value, draws, without), n)


def auc_estimate(
    members: Sequence[float] | Floats,
    nonmembers: Sequence[float] | Floats,
    clusters: tuple[Sequence[Hashable] | None, Sequence[Hashable] | None] = (None, None),
) -> Estimate:
    """`auc` with a score interval at the variance of DeLong et al. 1988; `n` counts both sides together. Where scores
    have labels of documents, of members and non-members, these are the units (Obuchowski 1997).

    Where few scores overlap, DeLong's variance is too small: its interval on the logit scale covers about 80 % at an
    AUC of .97 with 30 exponential scores against 300. The variance that Newcombe 2006 (method 5) derives from the AUC
    alone is used where it is larger. At 0 and 1 both vanish, and an AUC counts as a share of min(members, nonmembers)
    trials, in documents, which bounds its variance whatever the scores (Birnbaum & Klose 1957).

    Raises:
        DataError: A score is not finite.
    """
    inside, outside = finite("members", members), finite("nonmembers", nonmembers)
    value, above, below = placements(inside, outside)
    m, n = inside.size, outside.size
    if math.isnan(value):
        return Estimate(value, reason=ONE_SIDE)
    units = [_codes(labels, size) for labels, size in zip(clusters, (m, n), strict=True)]
    fewest = min(int(codes.max()) + 1 for codes in units)
    if fewest < 2:
        return Estimate(value, n=m + n, reason=ONE_TEXT, members=m, nonmembers=n)
    delong = sum(_covariance(share, share, codes) for share, codes in zip((above, below), units, strict=True))
    mean = (m + n) / 2 - 1
    newcombe = value * (1 - value) * (1 + mean * ((1 - value) / (2 - value) + value / (1 + value))) / (m * n)
    ends = _score_interval(value, max(delong, newcombe), fewest, z_quantile(1 - TAIL))
    return Estimate(value, *ends, m + n, members=m, nonmembers=n)


def auc_difference_estimate(
    before: tuple[Sequence[float] | Floats, Sequence[float] | Floats],
    after: tuple[Sequence[float] | Floats, Sequence[float] | Floats],
    clusters: tuple[Sequence[Hashable] | None, Sequence[Hashable] | None] = (None, None),
) -> Estimate:
    """AUC of `after` less that of `before`, each (members, non-members): the same texts in the same order.

    Newcombe's method 10 as for other differences, from the intervals of `auc_estimate` and DeLong's correlation.

    Raises:
        DataError: A score is not finite.
    """
    old, new = auc_estimate(*before, clusters), auc_estimate(*after, clusters)
    sides = [[np.asarray(side, dtype=np.float64) for side in pair] for pair in (before, after)]
    if math.isnan(old.low):
        return Estimate(new.value - old.value, n=new.n, reason=new.reason or old.reason)
    parts = []  # of members and of non-members: variance before, covariance, variance after
    for first, second, labels in zip(placements(*sides[0])[1:], placements(*sides[1])[1:], clusters, strict=True):
        codes = _codes(labels, first.size)
        parts.append([_covariance(*pair, codes) for pair in ((first, first), (first, second), (second, second))])
    earlier, both, later = map(sum, zip(*parts, strict=True))
    scale = math.sqrt(earlier * later)
    return _joined(old, new, both / scale if scale else 0.0)


def tpr_estimate(members: Sequence[float] | Floats, nonmembers: Sequence[float] | Floats, fpr: float) -> Estimate:
    """Largest share of members above a threshold that flags at most the share `fpr`, below 1, of the non-members.

    The measure of Carlini et al. 2022, with an interval that assumes nothing about the scores; `n` counts both sides.
    The number of non-members above the true threshold is binomial (n, fpr), which puts that threshold between two of
    their scores; the share of members above it is drawn from Jeffreys' posterior. With too few non-members for `fpr`
    (30 for 1 %) the threshold may lie above them all and the lower end is 0: that much is not known.

    Raises:
        DataError: A score is not finite.
    """
    inside, outside = finite("members", members), finite("nonmembers", nonmembers)
    m, n = inside.size, outside.size
    if not m or not n:
        return Estimate(NAN, reason=ONE_SIDE)
    allowed = math.floor(fpr * n + 1e-9)  # 0.29 * 100 is a little less than 29
    value = float(np.mean(inside > np.sort(outside)[::-1][allowed]))
    if min(m, n) < 2:
        return Estimate(value, n=m + n, reason=ONE_TEXT)
    # Members above each non-member, from the highest down; none lie above infinity, all above minus infinity.
    higher = m - np.searchsorted(np.sort(inside), np.sort(outside)[::-1], side="right")
    higher = np.concatenate([[0], higher, [m]])
    rng = np.random.default_rng(SEED)
    flagged = rng.binomial(n, fpr, size=5 * RESAMPLES)
    fewest, most = higher[flagged], higher[flagged + 1]
    low = float(np.quantile(np.where(fewest == 0, 0, _share_draws(fewest, m, rng)), TAIL))
    high = float(np.quantile(np.where(most == m, 1, _share_draws(most, m, rng)), 1 - TAIL))
    return Estimate(value, min(low, value), max(high, value), m + n)


def ks_pvalue(a: Sequence[float] | Floats, b: Sequence[float] | Floats) -> float:
    """P-value of the two-sided two-sample Kolmogorov-Smirnov test; NaN if a side is empty.

    Raises:
        DataError: A value is not finite.
    """
    first, second = finite("a", a), finite("b", b)
    if not first.size or not second.size:
        return math.nan
    from scipy.stats import ks_2samp  # takes a second to import

    return float(ks_2samp(first, second).pvalue)


def runs_estimate(values: Sequence[float] | Floats) -> Estimate:
    """Mean over runs with Student's t interval; `n` counts runs.

    Raises:
        DataError: A value is not finite.
    """
    runs = finite("values", values)
    if runs.size < 2:
        reason = "one run has no spread" if runs.size else "no run has it"
        return Estimate(float(runs[0]) if runs.size else NAN, n=runs.size, reason=reason)
    mean, half = float(runs.mean()), t_quantile(runs.size - 1) * float(runs.std(ddof=1)) / math.sqrt(runs.size)
    return Estimate(mean, mean - half, mean + half, runs.size)


def _mean(rows: Floats, codes: NDArray[np.int64], weights: Floats) -> Estimate:
    if not rows.size:
        return Estimate(NAN, reason=NO_ROWS)
    value = float(np.average(rows, weights=weights))
    sums, sizes = _by_cluster(codes, rows * weights), _by_cluster(codes, weights)
    units = sums.size
    if units < 2:
        return Estimate(value, n=rows.size, reason=ONE)
    if _in_unit_range(rows):
        return Estimate(value, *_share_interval(value, sums, sizes), rows.size)
    if not np.ptp(rows):
        return Estimate(value, value, value, rows.size)
    rng = np.random.default_rng(SEED)
    draws = np.empty(RESAMPLES)
    step = max(1, BLOCK // units)
    for start in range(0, RESAMPLES, step):
        chosen = rng.integers(units, size=(min(step, RESAMPLES - start), units))
        draws[start : start + step] = sums[chosen].sum(axis=1) / sizes[chosen].sum(axis=1)
    without = (sums.sum() - sums) / (sizes.sum() - sizes)
    low, high = bca_interval(value, draws, [without])
    half = t_quantile(units - 1) * math.sqrt((units - 1) / units * np.square(without - without.mean()).sum())
    if rows.min() > 0 and units >= LOG_UNITS:
        ends = value * math.exp(-half / value), value * math.exp(half / value)
    else:
        ends = value - half, value + half
    return Estimate(value, min(low, ends[0]), max(high, ends[1]), rows.size)


def _unit_difference(first: Floats, second: Floats, codes: NDArray[np.int64], weights: Floats) -> Estimate:
    """Newcombe's interval for the difference of two paired means of values in [0, 1]."""
    sizes = _by_cluster(codes, weights)
    means, residuals = [], []
    for rows in (first, second):
        mean, sums = float(np.average(rows, weights=weights)), _by_cluster(codes, rows * weights)
        means.append(Estimate(mean, *_share_interval(mean, sums, sizes), first.size))
        residuals.append(sums - mean * sizes)
    scale = math.sqrt(float(np.square(residuals[0]).sum() * np.square(residuals[1]).sum()))
    product = float(residuals[0] @ residuals[1])
    if product > 0 and np.isin([first, second], (0.0, 1.0)).all():
        product = max(0.0, product - 0.5)  # Newcombe's continuity correction: no change among few rows is not certainty
    return _joined(means[0], means[1], product / scale if scale else 0.0)


def _joined(old: Estimate, new: Estimate, correlation: float) -> Estimate:
    """New less old, its interval from those of the two and their correlation (Newcombe 1998, method 10)."""

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a + b * b - 2 * correlation * a * b))

    value = new.value - old.value
    low = value - reach(new.value - new.low, old.high - old.value)
    return Estimate(value, low, value + reach(new.high - new.value, old.value - old.low), new.n)


def _share_interval(mean: float, sums: Floats, sizes: Floats) -> tuple[float, float]:
    """Score interval of a mean of values in [0, 1], from the sum and the weight of the rows of each document."""
    units = sums.size
    variance = units / (units - 1) * np.square(sums - mean * sizes).sum() / sizes.sum() ** 2
    return _score_interval(mean, float(variance), units, t_quantile(units - 1))


def _score_interval(share: float, variance: float, trials: int, quantile: float) -> tuple[float, float]:
    """Wilson's interval of a share at the number of trials that its variance amounts to.

    Args:
        share: In [0, 1].
        variance: Of `share`.
        trials: What counts instead where the variance is 0.
        quantile: Standard deviations on each side.
    """
    weight = quantile**2 / (share * (1 - share) / variance if variance > 0 else trials)
    centre = (share + weight / 2) / (1 + weight)
    half = math.sqrt(weight * share * (1 - share) + weight**2 / 4) / (1 + weight)
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def _in_unit_range(rows: Floats) -> bool:
    return bool(rows.min() >= 0 and rows.max() <= 1)


def _share_draws(hits: NDArray[np.int64], trials: int, rng: np.random.Generator) -> Floats:
    """A draw of the true share for each count, from its posterior under Jeffreys' prior."""
    return rng.beta(hits + 0.5, trials - hits + 0.5)


def _weights(weights: Sequence[float] | None, rows: int) -> Floats:
    return np.ones(rows) if weights is None else np.array(weights, dtype=np.float64)


def _by_cluster(codes: NDArray[np.int64], values: Floats) -> Floats:
    """The sum of each cluster's values."""
    return np.bincount(codes, values).astype(np.float64)


def _covariance(first: Floats, second: Floats, codes: NDArray[np.int64]) -> float:
    """Covariance of the means of two numbers of the same rows, with documents as the unit."""
    sums = [_by_cluster(codes, values - values.mean()) for values in (first, second)]
    units = sums[0].size
    return float(units / (units - 1) * (sums[0] @ sums[1]) / first.size**2)


def _codes(clusters: Sequence[Hashable] | None, rows: int) -> NDArray[np.int64]:
    """Number of each row's cluster, from 0."""
    if clusters is None:
        return np.arange(rows)
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in clusters], dtype=np.int64)
