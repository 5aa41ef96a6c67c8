"""From many values to the one number that a benchmark reports."""

import math
from collections.abc import Sequence
from statistics import harmonic_mean

from expunge.errors import DataError
from expunge.evaluation.metrics.generations import MUSE
from expunge.evaluation.metrics.memorization import TOFU
from expunge.evaluation.metrics.registry import metric
from expunge.evaluation.stats import ks_pvalue


@metric("model_utility", direction="higher", family="utility", source=TOFU, needs=())
def model_utility(terms: Sequence[float]) -> float:
    """Harmonic mean of probability, ROUGE-L recall, truth ratio on retain, real authors, world facts

    Probability is `normalized_probability` on real authors and world facts, the truth ratio enters as the mean of
    max(0, 1 - R).
    """
    return float(harmonic_mean(terms))


@metric("forget_quality", direction="higher", family="memorization", source=TOFU, needs=())
def forget_quality(ratios: Sequence[float], reference_ratios: Sequence[float]) -> float:
    """p-value of the two-sample KS test between the truth ratios of this and a retrained model

    On forget rows. Large: the unlearned model cannot be told from one that never saw the rows. NaN if a side is empty.

    Raises:
        DataError: A ratio is not finite.
    """
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
