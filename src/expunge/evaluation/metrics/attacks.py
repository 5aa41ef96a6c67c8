"""Was a text in the training data: one score per text, larger = MORE likely a member.

The area under the ROC curve over members and non-members is `expunge.utils.roc.auc`.
"""

import math
import zlib as _zlib

import numpy as np
from numpy.typing import NDArray

from expunge.errors import DataError
from expunge.evaluation.metrics.memorization import mean_nll
from expunge.evaluation.metrics.record import TokenRecord
from expunge.evaluation.metrics.registry import attack

CARLINI = "Carlini et al. 2021 (2012.07805)"
VARIANCE_FLOOR = float(np.finfo(np.float32).tiny)
"""Keeps a token with a probability of exactly 1 from dividing 0 by 0; it scores 0, the limit."""


@attack("loss", source="Yeom et al. 2018 (1709.01604)")
def loss(record: TokenRecord) -> float:
    """-mean NLL"""
    return -mean_nll(record)


@attack("zlib", source=CARLINI)
def zlib(record: TokenRecord, text: str) -> float:
    """-mean NLL / bytes of the zlib-compressed text"""
    return -mean_nll(record) / len(_zlib.compress(text.encode()))


@attack("lowercase", source=CARLINI)
def lowercase(record: TokenRecord, lower: TokenRecord) -> float | None:
    """-mean NLL / mean NLL of the lower-cased text

    None where that has a loss of 0.
    """
    reference = mean_nll(lower)
    return -mean_nll(record) / reference if reference else None


@attack("recall", high=math.inf, source="Xie et al. 2024, ReCaLL (2406.15968)")
def recall(record: TokenRecord, after_unseen: TokenRecord) -> float | None:
    """Mean NLL after an unseen text / mean NLL

    A text that is known by heart gains nothing by what stands before it. One that was forgotten as it stands alone, and
    not after other texts, gains far more than an unseen one: its AUC is far below that of a retrained model. None where
    the text has a loss of 0. Both are of the tokens that have room after the unseen text.
    """
    alone = mean_nll(record[: len(after_unseen)])
    return mean_nll(after_unseen) / alone if alone else None


@attack("min_k", over="share", label=lambda share: f"min_k_{round(100 * share)}", source="Shi et al. 2023 (2310.16789)")
def min_k(record: TokenRecord, share: float) -> float:
    """Mean log p of the share k of least likely tokens

    floor(share n) of n tokens, at least one.
    """
    return mean_of_smallest(record, record.logps, share)


@attack(
    "min_k_plus_plus", over="share", label=lambda share: f"min_k_plus_plus_{round(100 * share)}", high=math.inf,
    source="Zhang et al. 2024 (2404.02936)",
)  # fmt: skip
def min_k_plus_plus(record: TokenRecord, share: float) -> float:
    """Mean (log p - mu)/sigma of the share k of tokens with the least

    mu and sigma^2 are the mean and variance of log p under the model's own distribution at that token, so the score of
    a token says how it compares with what could have stood there.
    """
    return mean_of_smallest(record, standardised(record, VARIANCE_FLOOR), share)


@attack("reference", high=math.inf, source=CARLINI)
def reference(record: TokenRecord, reference: TokenRecord) -> float:
    """Mean NLL under a reference model - mean NLL

    Raises:
        DataError: The two are not of the same text under one tokenizer.
    """
    if len(record) != len(reference):
        raise DataError(
            f"{record.id}: has {len(record)} tokens here and {len(reference)} under the reference: the "
            "reference attack needs a model with the same tokenizer"
        )
    return mean_nll(reference) - mean_nll(record)


@attack("gradient_norm", default=False, source="Wang et al. 2024 (2402.17012)")
def gradient_norm(gradient: float) -> float:
    """-2-norm of the mean NLL's gradient by all parameters"""
    return -gradient


def standardised(record: TokenRecord, floor: float) -> NDArray[np.float64]:
    """(log p - mu)/sigma of each token, sigma^2 at least `floor`."""
    found: NDArray[np.float64] = (record.logps - record.mean_logp) / np.sqrt(np.maximum(record.var_logp, floor))
    return found


def mean_of_smallest(record: TokenRecord, values: NDArray[np.float64], share: float) -> float:
    """Mean of the floor(share n) smallest of n values, of at least one.

    Raises:
        DataError: There is no target token.
    """
    record.require_targets()
    return float(np.sort(values)[: max(1, int(share * len(values)))].mean())
