"""How well a text is known word by word: functions of the record of its tokens."""

import math

import numpy as np

from expunge.evaluation.metrics.record import TokenRecord
from expunge.evaluation.metrics.registry import knowledge, metric

TOFU = "Maini et al. 2024, TOFU (2401.06121)"


@metric("nll", direction=None, high=math.inf, family="memorization", source="Jelinek et al. 1977")
def mean_nll(record: TokenRecord) -> float:
    """Mean of -log p over the completion tokens, nats per token.

    Raises:
        DataError: There is no target token.
    """
    record.require_targets()
    return float(-record.logps.mean())


@knowledge("probability", family="memorization", source=TOFU, by_task=True)
def probability(record: TokenRecord) -> float:
    """exp(-mean NLL of the completion tokens)"""
    return float(np.exp(-mean_nll(record)))


@metric(
    "perplexity", direction="higher", keep="lower", low=1, high=math.inf, family="memorization",
    source="Jelinek et al. 1977",
)  # fmt: skip
def perplexity(record: TokenRecord) -> float:
    """exp(mean NLL of the completion tokens)"""
    with np.errstate(over="ignore"):
        return float(np.exp(mean_nll(record)))


@knowledge("exact_memorization", family="memorization", source="Tirumala et al. 2022 (2205.10770)")
def exact_memorization(record: TokenRecord) -> float:
    """Share of the completion tokens that are the model's first choice given the text before

    Raises:
        DataError: There is no target token.
    """
    record.require_targets()
    return float(record.hits.mean())


@knowledge(
    "extraction_strength", family="memorization", by_task=True,
    source="Wang et al. 2024 (2406.09179), after Carlini et al. 2021 (2012.07805)",
)  # fmt: skip
def extraction_strength(record: TokenRecord) -> float:
    """Share of the completion that follows word for word from its shortest sufficient beginning

    1 - k/n with k the smallest start from which all n target tokens to the end are the model's first choice; n when
    even the last one is not, so that a text of which nothing can be extracted scores 0.

    Raises:
        DataError: There is no target token.
    """
    record.require_targets()
    misses = np.flatnonzero(~record.hits)
    return float(1 - (misses[-1] + 1) / len(record)) if len(misses) else 1.0
