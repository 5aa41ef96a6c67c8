"""Does the model prefer the right answer to wrong ones: functions of mean NLLs (nats per token), one row at a time.

`correct` is the mean NLL of the paraphrased right answer (of the answer itself where the data has no paraphrase),
`wrong` those of the perturbed answers. The paper's truth ratio is the arithmetic mean of the wrong answers' normalised
probabilities over that of the right one. So does TOFU's `utils.py`; its `aggregate_eval_stat.py` (`compat="tofu"`)
and open-unlearning (`compat="open-unlearning"`, which adds 1e-10 to denominators) take the geometric mean.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from expunge.errors import DataError

Compat = Literal["tofu", "open-unlearning"]
EPSILON = 1e-10
"""What open-unlearning adds to denominators."""


def truth_ratio(correct: float, wrong: Sequence[float], compat: Compat | None = None) -> float:
    """R = mean_j P(wrong_j)^(1/|wrong_j|) / P(correct)^(1/|correct|), in [0, inf). Maini et al. 2024 (TOFU).

    Below 1 the model prefers the right answer; a model that never saw it has no preference, so on forget rows the
    target is the retrained model's distribution (`forget_quality`), near 1.

    Raises:
        DataError: There is no wrong answer.
    """
    _require(wrong)
    with np.errstate(over="ignore"):
        if compat == "open-unlearning":
            return float(np.exp(-np.mean(wrong)) / (np.exp(-correct) + EPSILON))
        if compat == "tofu":
            return float(np.exp(correct - np.mean(wrong)))
        return float(np.exp(correct - np.asarray(wrong)).mean())


def forget_truth_ratio(ratio: float, compat: Compat | None = None) -> float:
    """min(R, 1/R) of a forget row, in [0, 1]: 1 = no preference either way. TOFU's and open-unlearning's aggregate."""
    epsilon = EPSILON if compat == "open-unlearning" else 0.0
    return ratio if ratio <= 1 - epsilon else min(ratio, 1 / (ratio + epsilon))


def retain_truth_ratio(ratio: float) -> float:
    """max(0, 1 - R) of a row to keep, in [0, 1]: 1 = the right answer is preferred for certain. Maini et al. 2024."""
    return max(0.0, 1 - ratio)


def truth_probability(correct: float, wrong: Sequence[float], compat: Compat | None = None) -> float:
    """Share c / (c + w) of the normalised probability c of the right answer, w the mean of the wrong ones, in [0, 1].

    1/(1 + R), open-unlearning's `prob_mean`.

    Raises:
        DataError: There is no wrong answer.
    """
    if compat == "open-unlearning":
        _require(wrong)
        right, other = np.exp(-correct), np.exp(-np.mean(wrong))
        return float(right / (right + other + EPSILON))
    return float(1 / (1 + truth_ratio(correct, wrong, compat)))


def normalized_probability(answer: float, wrong: Sequence[float], compat: Compat | None = None) -> float:
    """Share of the answer in the normalised probabilities of all options, in [0, 1]. Maini et al. 2024 (TOFU).

    P(a)^(1/|a|) / (P(a)^(1/|a|) + sum_j P(wrong_j)^(1/|wrong_j|)), on real authors and world facts.

    Args:
        answer: Mean NLL of the answer itself, nats per token.
        wrong: Those of the perturbed answers.
        compat: `open-unlearning` adds 1e-10 to the denominator.

    Raises:
        DataError: There is no wrong answer.
    """
    _require(wrong)
    if compat == "open-unlearning":
        right = np.exp(-answer)
        return float(right / (right + np.exp(-np.asarray(wrong)).sum() + EPSILON))
    with np.errstate(over="ignore"):
        return float(1 / (1 + np.exp(answer - np.asarray(wrong)).sum()))


def _require(wrong: Sequence[float]) -> None:
    if not len(wrong):
        raise DataError("a truth ratio compares the right answer with wrong ones, and this row has none")
