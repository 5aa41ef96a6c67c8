"""Intervals against slow, obvious definitions; how often they cover is simulated in test_coverage.py."""

import itertools
import math
import random
import statistics
import time

import numpy as np
import pytest
import scipy.stats
from scipy.special import ndtr, stdtrit

from expunge.errors import DataError
from expunge.evaluation.bootstrap import bca_interval, strata_of
from expunge.evaluation.stats import (
    Estimate,
    auc_difference_estimate,
    auc_estimate,
    difference_estimate,
    ks_pvalue,
    mean_estimate,
    runs_estimate,
    statistic_estimate,
    tpr_estimate,
)
from expunge.utils.roc import auc, chance_sd, placements

NAN = math.nan


def documents(values, labels):
    """The rows of each document."""
    return [
        [value for value, document in zip(values, labels, strict=True) if document == label]
        for label in dict.fromkeys(labels)
    ]


def slow_share_interval(values, labels):
    """All shares that a t test with the variance of a share does not reject, found on a fine grid."""
    rows, mean = documents(values, labels), statistics.fmean(values)
    residuals = [sum(document) - mean * len(document) for document in rows]
    variance = len(rows) / (len(rows) - 1) * sum(r * r for r in residuals) / len(values) ** 2
    trials = mean * (1 - mean) / variance if variance else len(rows)
    t = stdtrit(len(rows) - 1, 0.975)
    grid = [i / 20000 for i in range(20001)]
    kept = [p for p in grid if (mean - p) ** 2 <= t * t * p * (1 - p) / trials + 1e-15]
    return kept[0], kept[-1]


def slow_bootstrap(values, labels, resamples=8000):
    """Means of resamples of whole documents, one by one."""
    rows, draw = documents(values, labels), random.Random(0)
    means = []
    for _ in range(resamples):
        picked = [value for _ in rows for value in draw.choice(rows)]
        means.append(statistics.fmean(picked))
    return sorted(means)


def sample(kind, seed=1, n=60, documents_of=4):
    rng = np.random.default_rng(seed)
    labels = [f"d{i // documents_of}" for i in range(n)]
    common = rng.normal(size=n)[[i // documents_of for i in range(n)]]
    if kind == "binary":
        return (rng.normal(size=n) + common > 0.5).astype(float), labels
    if kind == "share":
        return 1 / (1 + np.exp(-rng.normal(size=n) - common)), labels
    if kind == "same":
        return np.zeros(n), labels
    signed = 0.6 * rng.normal(size=n) + 0.6 * common
    return (signed if kind == "signed" else np.exp(signed)), labels


@pytest.mark.parametrize("kind", ["binary", "share", "same"])
@pytest.mark.parametrize("clustered", [True, False])
def test_the_interval_of_a_share_is_the_test_that_it_inverts(kind, clustered):
    values, labels = sample(kind)
    labels = labels if clustered else list(range(len(values)))
    found = mean_estimate(values, labels)
    assert found.value == pytest.approx(statistics.fmean(values))
    assert found.n == 60
    assert (found.low, found.high) == pytest.approx(slow_share_interval(values, labels), abs=1e-4)


@pytest.mark.parametrize("kind", ["loss", "signed"])
@pytest.mark.parametrize("clustered", [True, False])
def test_the_interval_of_a_mean_is_the_outer_one_of_bootstrap_and_t(kind, clustered):
    values, labels = sample(kind)
    labels = labels if clustered else list(range(len(values)))
    rows, mean = documents(values, labels), statistics.fmean(values)
    units = len(rows)
    without = [
        statistics.fmean([v for j, document in enumerate(rows) if j != i for v in document]) for i in range(units)
    ]
    centre = statistics.fmean(without)
    jackknife = math.sqrt((units - 1) / units * sum((w - centre) ** 2 for w in without))
    t = stdtrit(units - 1, 0.975)

    draws = slow_bootstrap(values, labels)
    normal = statistics.NormalDist()
    bias = normal.inv_cdf(sum(draw < mean for draw in draws) / len(draws))
    acceleration = sum((centre - w) ** 3 for w in without) / (6 * sum((centre - w) ** 2 for w in without) ** 1.5)
    ends = []
    for z in (bias - t * math.sqrt(units / (units - 1)), bias + t * math.sqrt(units / (units - 1))):
        level = normal.cdf(bias + z / (1 - acceleration * z))
        ends.append(draws[min(len(draws) - 1, int(level * len(draws)))])

    half = t * jackknife
    low, high = mean - half, mean + half
    if kind == "loss":  # positive alone: the t interval of the logarithm
        low, high = mean * math.exp(-half / mean), mean * math.exp(half / mean)
    found = mean_estimate(values, labels)
    tolerance = 0.15 * jackknife  # resampling noise in the tails of 2,000 draws
    assert found.low == pytest.approx(min(ends[0], low), abs=tolerance)
    assert found.high == pytest.approx(max(ends[1], high), abs=tolerance)


def test_a_heavy_tail_does_not_reach_below_what_is_possible():
    values = [1.2, 3.0, 2.1, 9.0, 400.0, 1.1, 5.0]
    found = mean_estimate(values)
    assert 0 < found.low < 30
    assert found.high > 200
    assert mean_estimate(values[:5]).low < 0  # too few to know that there are no negative ones


def test_rows_of_one_document_count_less_than_rows_of_many():
    values, labels = sample("loss")
    alone, together = mean_estimate(values), mean_estimate(values, labels)
    assert together.high - together.low > 1.2 * (alone.high - alone.low)
    assert alone.value == together.value


def test_five_hundred_rows_take_well_under_a_tenth_of_a_second():
    values = np.random.default_rng(0).exponential(size=500)
    mean_estimate(values)
    begun = time.process_time()
    mean_estimate(values)
    assert time.process_time() - begun < 0.1


def test_the_same_rows_have_the_same_interval():
    values, labels = sample("loss")
    assert mean_estimate(values, labels) == mean_estimate(list(values), labels)


@pytest.mark.parametrize("kind", ["binary", "share"])
def test_a_difference_of_shares_joins_their_intervals_by_their_correlation(kind):
    (old, labels), (noise, _) = sample(kind), sample(kind, seed=2)
    new = np.where(np.arange(60) % 3 == 0, noise, old) * (1 if kind == "binary" else 0.7)
    m, k = statistics.fmean(old), statistics.fmean(new)
    first = [sum(document) - m * len(document) for document in documents(old, labels)]
    second = [sum(document) - k * len(document) for document in documents(new, labels)]
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    r = max(0.0, dot - (0.5 if kind == "binary" else 0)) / math.sqrt(
        sum(a * a for a in first) * sum(b * b for b in second)
    )
    l1, u1 = slow_share_interval(old, labels)
    l2, u2 = slow_share_interval(new, labels)
    low = k - m - math.sqrt((k - l2) ** 2 - 2 * r * (k - l2) * (u1 - m) + (u1 - m) ** 2)
    high = k - m + math.sqrt((u2 - k) ** 2 - 2 * r * (u2 - k) * (m - l1) + (m - l1) ** 2)
    found = difference_estimate(old, new, labels)
    assert found.value == pytest.approx(k - m)
    assert (found.low, found.high) == pytest.approx((low, high), abs=3e-4)


def test_a_difference_of_losses_is_the_mean_of_the_rows_own_differences():
    old, labels = sample("loss")
    new = old + np.random.default_rng(3).normal(1, 0.1, size=60)
    found = difference_estimate(old, new, labels)
    assert found == mean_estimate(new - old, labels)
    assert found.high - found.low < 0.1  # unpaired it would be about 1


def test_no_change_in_any_row_is_not_certainty():
    found = difference_estimate([0.0] * 30, [0.0] * 30)
    assert found.value == 0
    assert -0.2 < found.low < -0.05
    assert 0.05 < found.high < 0.2


def harmonic_mean_of_means(groups):
    means = [float(np.mean(values)) for values in groups.values()]
    return len(means) / sum(1 / mean for mean in means)


def test_an_aggregate_of_groups_against_resampling_in_loops():
    rng, draw = np.random.default_rng(4), random.Random(4)
    groups = {name: rng.uniform(low, 1, size=25) for name, low in (("a", 0.2), ("b", 0.5), ("c", 0.0))}
    found = statistic_estimate(groups, harmonic_mean_of_means)
    draws = []
    for _ in range(6000):
        means = [statistics.fmean(draw.choices(list(values), k=25)) for values in groups.values()]
        draws.append(statistics.harmonic_mean(means))
    spread = statistics.stdev(draws)
    assert found.value == pytest.approx(harmonic_mean_of_means(groups))
    assert found.n == 75
    low, high = sorted(draws)[150], sorted(draws)[-150]
    assert found.low == pytest.approx(low, abs=0.4 * spread)  # the bootstrap's own bias is corrected
    assert found.high == pytest.approx(high, abs=0.4 * spread)


def test_of_one_group_the_aggregate_is_the_bootstrap_of_a_mean():
    values, labels = sample("loss")
    whole = mean_estimate(values, labels)
    found = statistic_estimate({"a": values}, lambda groups: float(groups["a"].mean()), {"a": labels})
    assert found.value == whole.value
    assert found.low == pytest.approx(whole.low, abs=0.1)
    assert found.high == pytest.approx(whole.high, abs=0.1)


@pytest.mark.parametrize("rows", [8, 60])
def test_the_corrected_interval_is_that_of_scipy_at_the_level_that_few_units_ask_for(rows):
    """Bias and acceleration are scipy's; its normal quantile is replaced by Student's t and the unbiased spread."""
    values = np.exp(np.random.default_rng(3).normal(size=rows))
    z = stdtrit(rows - 1, 0.975) * math.sqrt(rows / (rows - 1))
    settings = {"statistic": np.mean, "confidence_level": 1 - 2 * ndtr(-z), "rng": np.random.default_rng(4)}
    drawn = scipy.stats.bootstrap((values,), n_resamples=999, method="percentile", **settings)
    wanted = scipy.stats.bootstrap((values,), n_resamples=0, bootstrap_result=drawn, method="BCa", **settings)
    without = (values.sum() - values) / (rows - 1)
    found = bca_interval(values.mean(), drawn.bootstrap_distribution, [without])
    assert found == pytest.approx(tuple(wanted.confidence_interval))


def test_groups_that_share_documents_move_together():
    rng = np.random.default_rng(5)
    level = rng.uniform(size=40)
    groups = {"a": level + 0.01 * rng.normal(size=40), "b": level + 0.01 * rng.normal(size=40)}
    names = [f"d{i}" for i in range(40)]

    def gap(drawn):
        return float(drawn["a"].mean() - drawn["b"].mean())

    def width(clusters):
        found = statistic_estimate(groups, gap, clusters)
        return found.high - found.low

    assert width({"a": names, "b": names}) < 0.1 * width(None)


def test_documents_are_resampled_whole():
    labels = {"a": ["x", "y", "x", "z"], "b": ["y", "w"], "c": ["q", "r", "s"]}
    rows = {name: np.arange(len(group), dtype=float) for name, group in labels.items()}
    first, second = sorted(strata_of(rows, labels), key=len, reverse=True)
    assert set(first) == {"a", "b"}
    assert set(second) == {"c"}
    order, starts, sizes = first["a"]
    units = [sorted(order[start : start + size].tolist()) for start, size in zip(starts, sizes, strict=True)]
    assert sorted(units) == [[], [0, 2], [1], [3]]


@pytest.mark.parametrize(
    ("groups", "value"),
    [
        ({"a": [1.0, 2.0], "b": [3.0]}, 4.5),
        ({"a": [1.0, 2.0], "b": []}, NAN),
        ({"a": [], "b": []}, NAN),
    ],
)
def test_an_aggregate_whose_spread_cannot_be_known_has_no_interval(groups, value):
    def total(drawn):
        return sum(float(np.mean(values)) if values.size else NAN for values in drawn.values())

    found = statistic_estimate(groups, total)
    assert found.value == pytest.approx(value, nan_ok=True)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_auc_counts_pairs():
    rng = np.random.default_rng(6)
    members, nonmembers = rng.integers(0, 9, 23), rng.integers(-3, 7, 31)
    wins = sum((m > n) + (m == n) / 2 for m in members for n in nonmembers)
    assert auc(members, nonmembers) == wins / (23 * 31)
    assert auc([1], [0]) == 1
    assert auc([0], [1]) == 0
    assert math.isnan(auc([], [1]))


def test_what_chance_does_to_an_auc_is_the_spread_over_all_orders():
    members, nonmembers = 3, 4
    aucs = [
        auc(inside, [rank for rank in range(7) if rank not in inside])
        for inside in itertools.combinations(range(7), members)
    ]
    assert chance_sd(members, nonmembers) == pytest.approx(statistics.pstdev(aucs))


def test_the_interval_of_an_auc_is_the_test_that_it_inverts():
    rng = np.random.default_rng(7)
    members, nonmembers = rng.normal(0.7, 1, size=80), rng.normal(size=60)
    m, n, value = 80, 60, auc(members, nonmembers)
    wins = [[(a > b) + (a == b) / 2 for b in nonmembers] for a in members]
    of_members = [sum(row) / n for row in wins]
    of_nonmembers = [sum(row[j] for row in wins) / m for j in range(n)]
    delong = statistics.variance(of_members) / m + statistics.variance(of_nonmembers) / n
    half = (m + n) / 2 - 1
    newcombe = value * (1 - value) * (1 + half * ((1 - value) / (2 - value) + value / (1 + value))) / (m * n)
    trials = value * (1 - value) / max(delong, newcombe)
    grid = [i / 20000 for i in range(20001)]
    kept = [p for p in grid if (value - p) ** 2 <= 1.959964**2 * p * (1 - p) / trials]
    found = auc_estimate(members, nonmembers)
    assert (found.low, found.high) == pytest.approx((kept[0], kept[-1]), abs=1e-4)
    assert found.n == 140


def test_the_interval_of_an_auc_counts_documents():
    """Ten alike scores of each of twenty documents are twenty: what each document contributes is the unit."""
    rng = np.random.default_rng(8)
    sides = rng.normal(0.7, 1, size=20), rng.normal(size=20)
    whole, labels = auc_estimate(*sides), np.repeat(np.arange(20), 10)
    repeated = [np.repeat(side, 10) for side in sides]
    found = auc_estimate(*repeated, (labels, labels))
    value, above, below = placements(*sides)
    delong = above.var(ddof=1) / 20 + below.var(ddof=1) / 20
    assert (found.value, found.n) == (whole.value, 400)
    trials = value * (1 - value) / delong
    grid = np.arange(20001) / 20000
    kept = grid[(value - grid) ** 2 <= 1.959964**2 * grid * (1 - grid) / trials]
    assert (found.low, found.high) == pytest.approx((kept[0], kept[-1]), abs=1e-4)
    assert found.high - found.low > 2.5 * (lambda interval: interval.high - interval.low)(auc_estimate(*repeated))
    assert math.isnan(auc_estimate(*repeated, ([0] * 200, labels)).low)
    one, many = (
        auc_difference_estimate(pair, pair[::-1], clusters)
        for pair, clusters in ((sides, (None, None)), (repeated, (labels, labels)))
    )
    assert many.value == pytest.approx(one.value)
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.05)


@pytest.mark.parametrize(("sides", "low", "high"), [((30, 40), 0.88, 1.0), ((300, 400), 0.98, 1.0), ((2, 9), 0.3, 1.0)])
def test_a_perfect_auc_has_an_interval_that_is_no_point(sides, low, high):
    found = auc_estimate(np.arange(sides[0]) + 1000, np.arange(sides[1]))
    assert found.value == found.high == high
    assert low < found.low < low + 0.1
    mirrored = auc_estimate(np.arange(sides[1]), np.arange(sides[0]) + 1000)
    assert mirrored.value == mirrored.low == 0
    assert mirrored.high == pytest.approx(1 - found.low)


def test_a_difference_of_aucs_joins_their_intervals_by_the_correlation_of_what_each_text_contributes():
    rng = np.random.default_rng(11)
    level = rng.normal(size=80), rng.normal(size=60)
    before = [side + 0.4 * rng.normal(size=side.size) + shift for side, shift in zip(level, (1.2, 0), strict=True)]
    after = [side + 0.4 * rng.normal(size=side.size) + shift for side, shift in zip(level, (0.3, 0), strict=True)]

    def contributions(members, nonmembers):
        wins = [[(a > b) + (a == b) / 2 for b in nonmembers] for a in members]
        return [statistics.fmean(row) for row in wins], [statistics.fmean(column) for column in zip(*wins, strict=True)]

    def covariance(first, second):
        return sum(statistics.covariance(x, y) / len(x) for x, y in zip(first, second, strict=True))

    old, new = contributions(*before), contributions(*after)
    r = covariance(old, new) / math.sqrt(covariance(old, old) * covariance(new, new))
    first, second = auc_estimate(*before), auc_estimate(*after)
    down, up = second.value - second.low, first.high - first.value
    low = math.sqrt(down**2 + up**2 - 2 * r * down * up)
    down, up = first.value - first.low, second.high - second.value
    high = math.sqrt(down**2 + up**2 - 2 * r * down * up)
    found, change = auc_difference_estimate(before, after), second.value - first.value
    assert r > 0.5
    assert (found.value, found.low, found.high, found.n) == pytest.approx((change, change - low, change + high, 140))
    assert found.high - found.low < 0.8 * math.hypot(first.high - first.low, second.high - second.low)


def test_two_perfect_aucs_may_still_differ():
    side = np.arange(30) + 1000, np.arange(40)
    found = auc_difference_estimate(side, side)
    assert found.value == 0
    assert -0.2 < found.low < -0.05
    assert 0.05 < found.high < 0.2
    assert math.isnan(auc_difference_estimate(([1], [0, 2]), ([3], [0, 2])).low)


def test_tpr_is_the_best_of_all_thresholds():
    rng = np.random.default_rng(8)
    for fpr in (0.0, 0.01, 0.05, 0.29, 0.5):
        members, nonmembers = rng.integers(0, 30, 57), rng.integers(-5, 25, 100)
        best = max(
            np.mean(members >= threshold)
            for threshold in [*range(-6, 31), math.inf]
            if sum(nonmembers >= threshold) <= round(fpr * 100)
        )
        found = tpr_estimate(members, nonmembers, fpr)
        assert found.value == best
        assert found.low <= best <= found.high


def test_too_few_nonmembers_leave_the_lower_end_at_nothing():
    members = np.arange(30) + 100.0
    assert tpr_estimate(members, np.arange(30), 0.01).low == 0
    assert tpr_estimate(np.arange(500) + 1000.0, np.arange(500), 0.05).low > 0.95


def test_ks_is_the_share_of_splits_that_differ_as_much():
    a, b = [0.1, 0.4, 0.5, 0.9, 1.3], [0.7, 1.1, 1.6, 2.0]

    def distance(first, second):
        return max(
            abs(sum(x <= t for x in first) / len(first) - sum(x <= t for x in second) / len(second)) for t in every
        )

    every = a + b
    splits = [[every[i] for i in chosen] for chosen in itertools.combinations(range(9), 5)]
    observed = distance(a, b)
    as_large = sum(distance(split, [x for x in every if x not in split]) >= observed - 1e-12 for split in splits)
    assert ks_pvalue(a, b) == pytest.approx(as_large / len(splits))
    assert math.isnan(ks_pvalue([], b))


def test_several_runs():
    values = [0.31, 0.35, 0.29, 0.4]
    found = runs_estimate(values)
    assert (found.value, found.n) == (pytest.approx(0.3375), 4)
    half = 3.182446 * statistics.stdev(values) / 2
    assert (found.low, found.high) == pytest.approx((0.3375 - half, 0.3375 + half))
    assert runs_estimate([0.5]).value == 0.5
    assert math.isnan(runs_estimate([0.5]).low)
    assert math.isnan(runs_estimate([]).value)


@pytest.mark.parametrize(
    "found",
    [
        mean_estimate([]),
        difference_estimate([], []),
        statistic_estimate({}, lambda groups: 0.0),
        auc_estimate([], [1.0]),
        tpr_estimate([1.0], [], 0.01),
    ],
)
def test_an_empty_group_has_no_value(found):
    assert found.n == 0
    assert all(math.isnan(number) for number in (found.value, found.low, found.high))


@pytest.mark.parametrize(
    "found",
    [
        mean_estimate([0.5]),
        mean_estimate([3.5]),
        mean_estimate([0.0, 1.0], ["a", "a"]),
        difference_estimate([1.0, 1.0], [0.0, 0.0], ["a", "a"]),
        auc_estimate([1.0], [0.0, 2.0]),
        tpr_estimate([1.0, 2.0], [0.0], 0.05),
    ],
)
def test_one_unit_has_a_value_and_no_interval(found):
    assert math.isfinite(found.value)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda bad: mean_estimate([1.0, bad]), "values"),
        (lambda bad: difference_estimate([1.0, bad], [1.0, 2.0]), "before"),
        (lambda bad: difference_estimate([1.0, 2.0], [1.0, bad]), "after"),
        (lambda bad: statistic_estimate({"x": [1.0, bad]}, harmonic_mean_of_means), "group x"),
        (lambda bad: auc([1.0, bad], [1.0]), "members"),
        (lambda bad: auc_estimate([1.0], [1.0, bad]), "nonmembers"),
        (lambda bad: tpr_estimate([1.0, bad], [1.0], 0.1), "members"),
        (lambda bad: ks_pvalue([1.0], [1.0, bad]), "b"),
        (lambda bad: runs_estimate([1.0, bad]), "values"),
    ],
)
def test_numbers_that_are_none_are_refused(call, name, bad):
    with pytest.raises(DataError, match=rf"^{name}: 1 of 2 values are not finite \(first is number 2: "):
        call(bad)


def test_more_than_a_number_a_row_is_refused():
    with pytest.raises(DataError, match="values: one number per row is needed, and this has 2 dimensions"):
        mean_estimate([[1.0, 2.0]])


def test_an_estimate_does_not_change():
    with pytest.raises(AttributeError):
        Estimate(1.0, 0.0, 2.0, 3).value = 2.0


@pytest.mark.parametrize("scale", [1.0, 3.0])  # shares, and values of any size
def test_a_weight_counts_as_so_many_rows_of_the_same_document(scale: float) -> None:
    rng = np.random.default_rng(0)
    first, second, weights = scale * rng.random(12), scale * rng.random(12), [1, 3] * 6
    again = [np.repeat(values, weights) for values in (first, second, np.arange(12))]
    found = mean_estimate(first, weights=weights), difference_estimate(first, second, weights=weights)
    wanted = mean_estimate(again[0], again[2]), difference_estimate(*again)
    for weighted, other in zip(found, wanted, strict=True):
        assert (weighted.value, weighted.low, weighted.high) == pytest.approx((other.value, other.low, other.high))
        assert (weighted.n, other.n) == (12, 24)
