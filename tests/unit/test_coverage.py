"""How often the 95 % intervals hold the truth, by simulation in the sizes and shapes that evaluations have."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from expunge.evaluation import bootstrap, stats
from expunge.evaluation.stats import (
    Estimate,
    auc_difference_estimate,
    auc_estimate,
    difference_estimate,
    mean_estimate,
    runs_estimate,
    statistic_estimate,
    tpr_estimate,
)


def coverage(estimate: Callable[[], Estimate], truth: float, repetitions: int) -> float:
    found = [estimate() for _ in range(repetitions)]
    return sum(interval.low <= truth <= interval.high for interval in found) / repetitions


def documents(rng: np.random.Generator, rows: int, largest: int) -> np.ndarray:
    """Number of each row's document; documents have 1 to `largest` rows."""
    sizes = rng.integers(1, largest + 1, size=rows)
    return np.repeat(np.arange(rows), sizes)[:rows]


def binary(rng: np.random.Generator, labels: np.ndarray, share: float) -> np.ndarray:
    """Rows of one document are alike: their common chance of a 1 is drawn from a beta distribution."""
    if labels[-1] == labels.size - 1:
        return (rng.random(labels.size) < share).astype(float)
    return (rng.random(labels.size) < rng.beta(2 * share, 2 - 2 * share, size=labels[-1] + 1)[labels]).astype(float)


@pytest.mark.parametrize(("rows", "largest"), [(30, 1), (30, 8), (100, 1), (100, 8), (500, 8)])
@pytest.mark.parametrize("share", [0.03, 0.1, 0.5, 0.9])
def test_mean_of_zeros_and_ones(rows, largest, share):
    rng = np.random.default_rng(1)

    def estimate():
        labels = documents(rng, rows, largest)
        return mean_estimate(binary(rng, labels, share), labels)

    assert 0.90 <= coverage(estimate, share, 300) <= 0.995


@pytest.mark.parametrize(("rows", "largest"), [(30, 1), (100, 1), (100, 8), (500, 8)])
@pytest.mark.parametrize("kind", ["rouge", "few", "normal", "loss"])
def test_mean_of_other_values(rows, largest, kind):
    """ROUGE-like shares, shares of which few are not 0, normal values, and skewed ones as losses are."""
    rng = np.random.default_rng(2)

    def estimate():
        labels = documents(rng, rows, largest)
        single, common = rng.random(rows), rng.random(rows)[labels]
        mixed = single if largest == 1 else np.where(rng.random(rows) < 0.4, common, single)
        values = {
            "rouge": mixed**2.5,
            "few": np.where(mixed < 0.85, 0, (mixed - 0.85) / 0.15),
            "normal": ndtri(mixed) + 5,
            "loss": -np.log(mixed),
        }[kind]
        return mean_estimate(values, labels)

    truth = {"rouge": 1 / 3.5, "few": 0.075, "normal": 5.0, "loss": 1.0}[kind]
    assert 0.90 <= coverage(estimate, truth, 150) <= 0.99


@pytest.mark.parametrize(("rows", "largest"), [(30, 8), (100, 1), (500, 8)])
@pytest.mark.parametrize(("before", "after"), [(0.95, 0.1), (0.6, 0.5)])
def test_paired_difference_of_shares(rows, largest, before, after):
    rng = np.random.default_rng(3)

    def estimate():
        labels = documents(rng, rows, largest)
        level = ndtr((rng.normal(size=rows) + rng.normal(size=rows)[labels]) / np.sqrt(2))
        again = np.where(rng.random(rows) < 0.3, rng.random(rows), level)
        return difference_estimate((level < before) * 1.0, (again < after) * 1.0, labels)

    assert 0.90 <= coverage(estimate, after - before, 300) <= 0.99


def test_paired_difference_of_losses():
    rng = np.random.default_rng(4)

    def estimate():
        labels = documents(rng, 100, 8)
        change = rng.exponential(size=100)[labels] + rng.normal(size=100)
        before = rng.exponential(size=100)
        return difference_estimate(before, before + change, labels)

    assert 0.90 <= coverage(estimate, 1.0, 200) <= 0.99


@pytest.mark.parametrize(("members", "nonmembers"), [(30, 30), (30, 300), (100, 100), (500, 500)])
@pytest.mark.parametrize("truth", [0.5, 0.8, 0.97])
@pytest.mark.parametrize("kind", ["normal", "exponential"])
def test_auc(members, nonmembers, truth, kind):
    """At .97 the interval is wide rather than short: what a few overlapping scores say is not known well."""
    rng = np.random.default_rng(5)
    widths, values = [], []

    def estimate():
        if kind == "normal":
            scores = rng.normal(size=members) + ndtri(truth) * np.sqrt(2), rng.normal(size=nonmembers)
        else:
            scores = rng.exponential(size=members) * truth / (1 - truth), rng.exponential(size=nonmembers)
        found = auc_estimate(*scores)
        widths.append(found.high - found.low)
        values.append(found.value)
        return found

    covered = coverage(estimate, truth, 250)
    assert 0.90 <= covered <= (0.99 if truth < 0.9 else 1)
    assert np.mean(widths) < 1.6 * 2 * 1.96 * np.std(values)


@pytest.mark.parametrize(("members", "nonmembers"), [(34, 34), (100, 300)])
@pytest.mark.parametrize(("before", "after"), [(0.97, 0.6), (0.8, 0.8), (0.6, 0.5)])
def test_paired_difference_of_aucs(members, nonmembers, before, after):
    rng = np.random.default_rng(10)

    def estimate():
        level = rng.normal(size=members), rng.normal(size=nonmembers)
        pairs = []
        for truth in (before, after):
            scores = [(side + rng.normal(size=side.size)) / np.sqrt(2) for side in level]
            pairs.append((scores[0] + ndtri(truth) * np.sqrt(2), scores[1]))
        return auc_difference_estimate(*pairs)

    assert 0.90 <= coverage(estimate, after - before, 300) <= 0.995


@pytest.mark.parametrize(("rows", "fpr"), [(100, 0.05), (500, 0.01), (500, 0.05)])
@pytest.mark.parametrize("shift", [0.0, 1.2, 2.7])
def test_tpr(monkeypatch, rows, fpr, shift):
    monkeypatch.setattr(stats, "RESAMPLES", 200)
    rng = np.random.default_rng(6)

    def estimate():
        return tpr_estimate(rng.normal(size=rows) + shift, rng.normal(size=rows), fpr)

    assert 0.92 <= coverage(estimate, float(ndtr(shift + ndtri(fpr))), 200) <= 1


def test_harmonic_mean_of_group_means(monkeypatch):
    monkeypatch.setattr(stats, "RESAMPLES", 150)
    rng = np.random.default_rng(7)
    means = {"a": 0.9, "b": 0.5, "c": 0.3}

    def estimate():
        labels = documents(rng, 40, 4)
        groups = {name: binary(rng, labels, mean) for name, mean in means.items()}
        clusters = {name: [(name, label) for label in labels] for name in means}
        return statistic_estimate(
            groups, lambda parts: len(parts) / sum(1 / max(1e-9, values.mean()) for values in parts.values()), clusters
        )

    truth = len(means) / sum(1 / mean for mean in means.values())
    assert 0.90 <= coverage(estimate, truth, 60) <= 0.99


def test_mean_over_three_runs():
    rng = np.random.default_rng(8)
    assert 0.93 <= coverage(lambda: runs_estimate(rng.normal(size=3)), 0.0, 1000) <= 0.97


def test_the_plain_percentile_bootstrap_would_not_do():
    """Why the intervals are what they are: it covers a share of .03 in 30 rows about as often as not."""
    rng = np.random.default_rng(9)
    covered = 0
    for _ in range(200):
        values = binary(rng, np.arange(30), 0.03)
        draws = values[rng.integers(30, size=(500, 30))].mean(axis=1)
        low, high = np.quantile(draws, [bootstrap.TAIL, 1 - bootstrap.TAIL])
        covered += low <= 0.03 <= high
    assert covered / 200 < 0.75


def test_delongs_interval_on_the_logit_scale_would_not_do():
    """It covers about 80 % where few scores overlap and they are skewed."""
    rng = np.random.default_rng(10)
    covered = 0
    for _ in range(300):
        members, nonmembers = rng.exponential(size=30) * 0.97 / 0.03, rng.exponential(size=300)
        above = (members[:, None] > nonmembers).mean(axis=1)
        below = (members[:, None] > nonmembers).mean(axis=0)
        value = above.mean()
        error = np.sqrt(above.var(ddof=1) / 30 + below.var(ddof=1) / 300)
        half = 1.96 * error / max(1e-9, value * (1 - value))
        covered += abs(np.log(value / max(1e-9, 1 - value)) - np.log(0.97 / 0.03)) <= half
    assert 0.7 < covered / 300 < 0.88
