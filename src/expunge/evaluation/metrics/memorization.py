"""How well a text is known word by word: functions of the record of its tokens."""

import math

import numpy as np

from expunge.evaluation.metrics.record import TokenRecord
from expunge.evaluation.metrics.registry import metric

TOFU = "Maini et al. 2024, TOFU (2401.06121)"


@metric(
    "nll",
    direction=None,
    high=math.inf,
    needs=("record",),
    family="memorization",
    source="Jelinek et al. 1977",
    definition="mean of -log p over the completion tokens, nats per token",
)
def mean_nll(record: TokenRecord) -> float:
    """Mean over the target tokens of -log p(label), nats per token.

    Raises:
        DataError: There is no target token.
    """
    record.require_targets()
    return float(-record.logps.mean())


@metric(
    "probability",
    direction="lower",
    keep="higher",
    needs=("record",),
    by_task=True,
    family="memorization",
    source=TOFU,
    definition="exp(-mean NLL of the completion tokens)",
)
def probability(record: TokenRecord) -> float:
    """Length-normalised probability, P(y|x)^(1/|y|) = exp(-mean NLL), in [0, 1]."""
    return float(np.exp(-mean_nll(record)))


@metric(
    "perplexity",
    direction="higher",
    keep="lower",
    low=1,
    high=math.inf,
    needs=("record",),
    family="memorization",
    source="Jelinek et al. 1977",
    definition="exp(mean NLL of the completion tokens)",
)
def perplexity(record: TokenRecord) -> float:
    """exp(mean NLL) over the target tokens, at least 1; inf where it is beyond the floating point."""
    with np.errstate(over="ignore"):
        return float(np.exp(mean_nll(record)))


@metric(
    "exact_memorization",
    direction="lower",
    keep="higher",
    needs=("record",),
    family="memorization",
    source="Tirumala et al. 2022 (2205.10770)",
    definition="share of the completion tokens that are the model's first choice given the text before",
)
def exact_memorization(record: TokenRecord) -> float:
    """Share of the target tokens that are the model's first choice given the text before, in [0, 1].

    Raises:
        DataError: There is no target token.
    """
    record.require_targets()
    return float(record.hits.mean())


@metric(
    "extraction_strength",
    direction="lower",
    keep="higher",
    needs=("record",),
    by_task=True,
    family="memorization",
    source="Wang et al. 2024 (2406.09179), after Carlini et al. 2021 (2012.07805)",
    definition="share of the completion that follows word for word from its shortest sufficient beginning",
)
def extraction_strength(record: TokenRecord) -> float:
    """1 - k/n: the share of a text that follows word for word when the first k of its n target tokens are given.

    k is the smallest start from which all tokens to the end are the model's first choice; n when even the last one is
    not, so that a text of which nothing can be extracted scores 0.

    Raises:
        DataError: There is no target token.
    """
    record.require_targets()
    misses = np.flatnonzero(~record.hits)
    return float(1 - (misses[-1] + 1) / len(record)) if len(misses) else 1.0
