"""Does the model prefer the right answer to wrong ones, one row at a time (Maini et al. 2024, TOFU).

The truth ratio is the arithmetic mean of the wrong answers' normalised probabilities over that of the paraphrased
right answer (of the answer itself where the data has no paraphrase).
"""

import math
from collections.abc import Sequence

import numpy as np

from expunge.evaluation.metrics.memorization import TOFU, mean_nll
from expunge.evaluation.metrics.record import TokenRecord
from expunge.evaluation.metrics.registry import knowledge, metric

R = "R = mean normalised probability of wrong answers / that of the paraphrased right one"


def truth_ratio(correct: float, wrong: Sequence[float]) -> float:
    """R = mean_j P(wrong_j)^(1/|wrong_j|) / P(correct)^(1/|correct|), in [0, inf), from mean NLLs (nats per token).

    Below 1 the model prefers the right answer; a model that never saw it has no preference, so on forget rows the
    target is the retrained model's distribution (`forget_quality`), near 1.
    """
    with np.errstate(over="ignore"):
        return float(np.exp(correct - np.asarray(wrong)).mean())


@metric("truth_ratio_raw", direction=None, high=math.inf, family="memorization", source=TOFU, definition=R)
def truth_ratio_of(correct: TokenRecord, wrong: Sequence[TokenRecord]) -> float:
    """`truth_ratio` of records."""
    return truth_ratio(mean_nll(correct), [mean_nll(record) for record in wrong])


@metric(
    "forget_truth_ratio", direction="target", target=1, on="forget", label=lambda _: "truth_ratio",
    family="memorization", source=TOFU + "; min(R, 1/R) as in its code", definition=f"min(R, 1/R), {R}",
)  # fmt: skip
def forget_truth_ratio(correct: TokenRecord, wrong: Sequence[TokenRecord]) -> float:
    """min(R, 1/R) of a forget row, in [0, 1]: 1 = no preference either way."""
    return folded(truth_ratio_of(correct, wrong))


def folded(ratio: float) -> float:
    """min(R, 1/R)."""
    return ratio if ratio <= 1 else 1 / ratio


@metric(
    "retain_truth_ratio", direction="higher", on="others", label=lambda _: "truth_ratio", family="utility",
    source=TOFU, definition=f"max(0, 1 - R), {R}",
)  # fmt: skip
def retain_truth_ratio(correct: TokenRecord, wrong: Sequence[TokenRecord]) -> float:
    """max(0, 1 - R) of a row to keep, in [0, 1]: 1 = the right answer is preferred for certain."""
    return max(0.0, 1 - truth_ratio_of(correct, wrong))


@knowledge("truth_probability", family="memorization", source="open-unlearning (prob_mean)")
def truth_probability(correct: TokenRecord, wrong: Sequence[TokenRecord]) -> float:
    """1/(1 + R): the right answer's share of right and mean wrong probability"""
    return 1 / (1 + truth_ratio_of(correct, wrong))


@knowledge("normalized_probability", default=False, family="memorization", source=TOFU)
def normalized_probability_of(record: TokenRecord, wrong: Sequence[TokenRecord]) -> float:
    """The answer's share of the normalised probabilities of all options"""
    return normalized_probability(mean_nll(record), [mean_nll(other) for other in wrong])


def normalized_probability(answer: float, wrong: Sequence[float]) -> float:
    """P(a)^(1/|a|) / (P(a)^(1/|a|) + sum_j P(wrong_j)^(1/|wrong_j|)), in [0, 1], from mean NLLs (nats per token)."""
    with np.errstate(over="ignore"):
        return float(1 / (1 + np.exp(answer - np.asarray(wrong)).sum()))
