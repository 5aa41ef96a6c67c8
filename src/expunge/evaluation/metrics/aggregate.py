"""From many values to the one number that a benchmark reports."""

import statistics
from collections.abc import Sequence
from typing import Literal

from expunge.errors import DataError
from expunge.evaluation.stats import ks_pvalue

EPSILON = 1e-10
"""What open-unlearning adds to denominators."""


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean n / sum(1/value) of n values that are not negative; 0 as soon as one is 0.

    Raises:
        DataError: There is no value, or a negative one.
    """
    try:
        return float(statistics.harmonic_mean(values))
    except statistics.StatisticsError:
        raise DataError(f"no harmonic mean of {len(values)} values: it needs one or more, none below 0") from None


def model_utility(terms: Sequence[float]) -> float:
    """Harmonic mean of probability, ROUGE-L recall and truth ratio on retain, real authors and world facts, in [0, 1].

    Maini et al. 2024 (TOFU): probability is `normalized_probability` on real authors and world facts, the truth
    ratio enters as mean max(0, 1 - R).

    Raises:
        DataError: There are not nine terms, or one is negative.
    """
    if len(terms) != 9:
        raise DataError(f"model utility is the harmonic mean of nine terms, here are {len(terms)}")
    return harmonic_mean(terms)


def forget_quality(ratios: Sequence[float], reference_ratios: Sequence[float]) -> float:
    """p-value, in [0, 1], of the two-sample Kolmogorov-Smirnov test between two models' truth ratios on forget rows.

    Large: the unlearned model cannot be told from one that never saw the rows. Maini et al. 2024 (TOFU).

    Raises:
        DataError: A side is empty, or a ratio is not finite.
    """
    if not len(ratios) or not len(reference_ratios):
        raise DataError("forget quality compares the truth ratios of two models, and one side has none")
    return ks_pvalue(ratios, reference_ratios)


def privleak(auc: float, reference_auc: float | None, compat: Literal["open-unlearning"] | None = None) -> float:
    """How far the membership attack is from that on a retrained model, in percent; target 0. Shi et al. 2024 (MUSE).

    ((1 - auc) - (1 - reference_auc)) / (1 - reference_auc) * 100 with the AUC of min-k% (k = 40 %), forget texts as
    members: negative = still recognised, positive = pushed beyond never having been seen.

    Args:
        auc: P(a forget text scores higher than a holdout text) + 0.5 P(equal), in [0, 1].
        reference_auc: The same under a model that never saw the forget texts.
        compat: `open-unlearning` takes 0.5 where there is no reference, and adds 1e-10 to the denominator.

    Raises:
        DataError: There is no reference, or it recognises every text.
    """
    if compat == "open-unlearning":
        ceiling = 1 - (0.5 if reference_auc is None else reference_auc)
        return ((1 - auc) - ceiling) / (ceiling + EPSILON) * 100
    if reference_auc is None:
        raise DataError("PrivLeak needs the AUC of a model that never saw the forget texts; 0.5 is only a stand-in")
    if reference_auc >= 1:
        raise DataError("PrivLeak divides by 1 - AUC of the reference, and that recognises every forget text")
    return ((1 - auc) - (1 - reference_auc)) / (1 - reference_auc) * 100


def rel_diff(value: float, reference: float, compat: Literal["open-unlearning"] | None = None) -> float:
    """(value - reference) / reference in percent; target 0. open-unlearning, which adds 1e-10 to the denominator.

    Raises:
        DataError: The reference is 0.
    """
    if compat != "open-unlearning" and reference == 0:
        raise DataError("a relative difference to a reference of 0 is not defined")
    return (value - reference) / (reference + (EPSILON if compat == "open-unlearning" else 0.0)) * 100
