"""How well a text is known word by word: functions of the record of its tokens.

`compat="open-unlearning"` gives the numbers of locuslab/open-unlearning, which leaves the last label out of the two
matching metrics. It means to skip the end token, and drops a real token of plain texts.
"""

from typing import Literal

import numpy as np

from expunge.evaluation.metrics.token_record import TokenRecord

Compat = Literal["open-unlearning"]


def mean_nll(record: TokenRecord) -> float:
    """Mean over the target tokens of -log p(label), nats per token.

    Raises:
        DataError: There is no target token.
    """
    record.require_targets()
    return float(-record.logps.mean())


def probability(record: TokenRecord) -> float:
    """Length-normalised probability, P(y|x)^(1/|y|) = exp(-mean NLL), in [0, 1]. Maini et al. 2024 (TOFU).

    Raises:
        DataError: There is no target token.
    """
    return float(np.exp(-mean_nll(record)))


def perplexity(record: TokenRecord) -> float:
    """exp(mean NLL) over the target tokens, at least 1; inf where it is beyond the floating point.

    Raises:
        DataError: There is no target token.
    """
    with np.errstate(over="ignore"):
        return float(np.exp(mean_nll(record)))


def exact_memorization(record: TokenRecord, compat: Compat | None = None) -> float:
    """Share of the target tokens that are the model's first choice given the text before, in [0, 1].

    Tirumala et al. 2022 (2205.10770). Under `compat` NaN where no label is left, which the published mean skips.

    Raises:
        DataError: There is no target token (not under `compat`).
    """
    hits = _hits(record, compat)
    return float(hits.mean()) if len(hits) else float("nan")


def extraction_strength(record: TokenRecord, compat: Compat | None = None) -> float:
    """1 - k/n: the share of a text that follows word for word when the first k of its n target tokens are given.

    k is the smallest start from which all tokens to the end are the model's first choice; n when even the last one is
    not, so that a text of which nothing can be extracted scores 0. Wang et al. 2024 (2406.09179), after Carlini et al.
    2021 (2012.07805). Under `compat` that case gives 1/n, and 0 where no label is left.

    Raises:
        DataError: There is no target token (not under `compat`).
    """
    hits = _hits(record, compat)
    if not len(hits):
        return 0.0
    misses = np.flatnonzero(~hits)
    start = misses[-1] + 1 if len(misses) else 0
    if compat:
        start = min(start, len(hits) - 1)
    return float(1 - start / len(hits))


def _hits(record: TokenRecord, compat: Compat | None) -> np.ndarray:
    if compat:
        return record[:-1].hits
    record.require_targets()
    return record.hits
