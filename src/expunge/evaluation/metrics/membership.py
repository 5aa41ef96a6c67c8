"""Was a text in the training data: one score per text, larger = MORE likely a member.

Under `compat` the number that the named code publishes: a loss, so larger = LESS likely a member, with its quirks.
The area under the ROC curve over members and non-members is `expunge.utils.roc.auc`.
"""

import zlib as _zlib
from typing import Literal

import numpy as np

from expunge.errors import DataError
from expunge.evaluation.metrics.memorization import mean_nll
from expunge.evaluation.metrics.token_record import TokenRecord

Compat = Literal["open-unlearning", "muse"]
VARIANCE_FLOOR = float(np.finfo(np.float32).tiny)
"""Keeps a token with a probability of exactly 1 from dividing 0 by 0; it scores 0, the limit."""


def loss(record: TokenRecord, compat: Compat | None = None) -> float:
    """-mean NLL, nats per token, in (-inf, 0]. Yeom et al. 2018 (LOSS); MUSE calls the mean NLL `PPL`."""
    return _oriented(-mean_nll(record), compat)


def zlib(record: TokenRecord, text: str, compat: Compat | None = None) -> float:
    """-mean NLL / bytes of the zlib-compressed text (UTF-8), in (-inf, 0]. Carlini et al. 2021 (Zlib).

    Args:
        record: The text's tokens.
        text: The text; open-unlearning compresses the labelled part, MUSE the whole.
        compat: Published sign.
    """
    return _oriented(-mean_nll(record) / len(_zlib.compress(text.encode())), compat)


def lowercase(record: TokenRecord, lowercased: TokenRecord, compat: Compat | None = None) -> float:
    """-mean NLL / mean NLL of the lower-cased text, in (-inf, 0]. Carlini et al. 2021 (Lowercase), on log-perplexities.

    Raises:
        DataError: A record is empty, or the lower-cased text has a loss of 0.
    """
    reference = mean_nll(lowercased)
    if not reference:
        raise DataError(f"{record.id}: its lower-cased text has a loss of 0, so there is no ratio: leave the row out")
    return _oriented(-mean_nll(record) / reference, compat)


def min_k(record: TokenRecord, k: float = 0.2, compat: Compat | None = None) -> float:
    """Mean log p (nats) of the share k of tokens with the smallest, at least one; in (-inf, 0].

    Shi et al. 2023 (2310.16789); floor(k n) of n tokens. `open-unlearning` leaves the last label out (no label left:
    0), `muse` takes no token of a short text (NaN).
    """
    return _oriented(_mean_of_smallest(record, "logps", k, compat), compat)


def min_k_plus_plus(record: TokenRecord, k: float = 0.2, compat: Compat | None = None) -> float:
    """Mean of the share k of tokens with the smallest (log p - mu)/sigma, at least one. Zhang et al. 2024 (2404.02936).

    mu and sigma^2 are the mean and variance of log p under the model's own distribution at that token, so the score of
    a token says how it compares with what could have stood there. `open-unlearning` leaves the last label out and takes
    a variance of at least 1e-6.
    """
    return _oriented(_mean_of_smallest(record, "standardised", k, compat), compat)


def reference(record: TokenRecord, reference_record: TokenRecord, compat: Compat | None = None) -> float:
    """Mean NLL under a reference model - mean NLL, nats per token. Carlini et al. 2021; Mireshghallah et al. 2022.

    Raises:
        DataError: A record is empty, or the two are not of the same text under one tokenizer.
    """
    if len(record) != len(reference_record):
        raise DataError(
            f"{record.id}: has {len(record)} tokens here and {len(reference_record)} under the reference: the "
            "reference attack needs a model with the same tokenizer"
        )
    return _oriented(mean_nll(reference_record) - mean_nll(record), compat)


def gradient_norm(norm: float, compat: Compat | None = None) -> float:
    """-norm of the gradient of the text's mean NLL (`expunge.evaluation.gradient_norm`). Wang et al. 2024
    (2402.17012, GradNorm).
    """
    return _oriented(-norm, compat)


def _oriented(score: float, compat: Compat | None) -> float:
    return float(score if compat is None else -score)


def _mean_of_smallest(record: TokenRecord, kind: str, k: float, compat: Compat | None) -> float:
    record.require_targets()
    if not 0 < k <= 1:
        raise DataError(f"min-k of a share of {k} tokens: k must be above 0 and at most 1")
    if compat == "open-unlearning":
        record = record[:-1]
        if not len(record):
            return 0.0
    values = record.logps
    if kind == "standardised":
        floor = 1e-6 if compat == "open-unlearning" else VARIANCE_FLOOR
        values = (values - record.mean_logp) / np.sqrt(np.maximum(record.var_logp, floor))
    count = int(k * len(values))
    if compat != "muse":
        count = max(1, count)
    return float(np.sort(values)[:count].mean()) if count else float("nan")
