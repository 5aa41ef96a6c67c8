"""From many values to the one number that a benchmark reports."""

import math
import statistics
from collections.abc import Sequence

from expunge.errors import DataError
from expunge.evaluation.metrics.generations import MUSE
from expunge.evaluation.metrics.memorization import TOFU
from expunge.evaluation.metrics.registry import metric
from expunge.evaluation.stats import ks_pvalue


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean n / sum(1/value) of n values that are not negative; 0 as soon as one is 0, else NaN if one is NaN.

    Raises:
        DataError: There is no value, or a negative one.
    """
    try:
        return float(statistics.harmonic_mean(values))
    except statistics.StatisticsError:
        raise DataError(f"no harmonic mean of {len(values)} values: it needs one or more, none below 0") from None


@metric("model_utility", direction="higher", family="utility", source=TOFU, needs=())
def model_utility(terms: Sequence[float]) -> float:
    """Harmonic mean of probability, ROUGE-L recall, truth ratio on retain, real authors, world facts

    Probability is `normalized_probability` on real authors and world facts, the truth ratio enters as the mean of
    max(0, 1 - R).

    Raises:
        DataError: There are not nine terms, or one is negative.
    """
    if len(terms) != 9:
        raise DataError(f"model utility is the harmonic mean of nine terms, here are {len(terms)}")
    return harmonic_mean(terms)


@metric("forget_quality", direction="higher", family="memorization", source=TOFU, needs=())
def forget_quality(ratios: Sequence[float], reference_ratios: Sequence[float]) -> float:
    """p-value of the two-sample KS test between the truth ratios of this and a retrained model

    On forget rows. Large: the unlearned model cannot be told from one that never saw the rows.

    Raises:
        DataError: A side is empty, or a ratio is not finite.
    """
    if not len(ratios) or not len(reference_ratios):
        raise DataError("forget quality compares the truth ratios of two models, and one side has none")
    return ks_pvalue(ratios, reference_ratios)


@metric("privleak", direction="target", target=0, low=-100, high=math.inf, family="membership", source=MUSE, needs=())
def privleak(auc: float, reference_auc: float) -> float:
    """((1 - AUC) - (1 - AUC_retrained)) / (1 - AUC_retrained) in percent, of min-k%

    The AUC is that of min-k% (k = 40 %), forget texts as members: negative = still recognised, positive = pushed
    beyond never having been seen.

    Args:
        auc: P(a forget text scores higher than a holdout text) + 0.5 P(equal), in [0, 1].
        reference_auc: The same under a model that never saw the forget texts.

    Raises:
        DataError: The reference recognises every text, so that there is nothing to divide by.
    """
    if reference_auc >= 1:
        raise DataError("PrivLeak divides by 1 - AUC of the reference, and that recognises every forget text")
    return ((1 - auc) - (1 - reference_auc)) / (1 - reference_auc) * 100
