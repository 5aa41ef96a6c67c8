"""What published code computes where it departs from the definitions that the package follows.

open-unlearning leaves the last label out of the matching metrics and of min-k (it means to skip the end token, and
drops a real token of plain texts), adds 1e-10 to denominators and takes the geometric mean of wrong answers, as TOFU's
`aggregate_eval_stat.py` does; MUSE takes no token of a short text; rouge-score sees no letter beyond a to z. Their
attack scores are losses: larger = LESS likely a member.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from rouge_score.rouge_scorer import RougeScorer

from expunge.data.tokenize import TokenizedExample
from expunge.evaluation.gradients import gradient, trainable
from expunge.evaluation.metrics import TokenRecord, attacks
from expunge.evaluation.metrics.memorization import exact_memorization, extraction_strength
from expunge.model.load import LoadedModel

EPSILON = 1e-10
SCORERS = {stem: RougeScorer(["rouge1", "rougeL"], use_stemmer=stem) for stem in (True, False)}


def rouge(prediction: str, reference: str, *, stem: bool = True) -> dict[str, float]:
    """What `generations.rouge` gives by rouge-score, to which a text is its letters a to z and digits 0 to 9 alone."""
    scores = SCORERS[stem].score(reference, prediction)
    return {
        f"{name}_{kind}": float(getattr(scores[key], attribute))
        for key, name in (("rouge1", "rouge_1"), ("rougeL", "rouge_l"))
        for attribute, kind in (("recall", "recall"), ("fmeasure", "f1"))
    }


def exact_match_share(record: TokenRecord) -> float:
    """open-unlearning's exact memorization: NaN, which its mean skips, where no label is left."""
    return exact_memorization(record[:-1]) if len(record) > 1 else math.nan


def extraction(record: TokenRecord) -> float:
    """open-unlearning's extraction strength: 1/n where nothing can be extracted, 0 where no label is left."""
    if len(record) < 2:
        return 0.0
    return max(extraction_strength(record[:-1]), 1 / (len(record) - 1))


def truth_ratio(correct: float, wrong: Sequence[float], epsilon: float = 0.0) -> float:
    """The ratio with the geometric mean of the wrong answers; open-unlearning has an epsilon of 1e-10."""
    if not epsilon:
        return float(np.exp(correct - np.mean(wrong)))
    return float(np.exp(-np.mean(wrong)) / (np.exp(-correct) + epsilon))


def folded(ratio: float) -> float:
    """open-unlearning's min(R, 1/R)."""
    return min(ratio, 1 / (ratio + EPSILON))


def truth_probability(correct: float, wrong: Sequence[float]) -> float:
    """open-unlearning's `prob_mean`."""
    right, other = np.exp(-correct), np.exp(-np.mean(wrong))
    return float(right / (right + other + EPSILON))


def normalized_probability(answer: float, wrong: Sequence[float]) -> float:
    """open-unlearning's share of the answer in the probabilities of all options."""
    right = np.exp(-answer)
    return float(right / (right + np.exp(-np.asarray(wrong)).sum() + EPSILON))


def min_k(record: TokenRecord, share: float) -> float:
    """open-unlearning's min-k, a loss; 0 where no label is left."""
    return -attacks.min_k(record[:-1], share) if len(record) > 1 else 0.0


def min_k_plus_plus(record: TokenRecord, share: float) -> float:
    """open-unlearning's min-k++, a loss, with a variance of at least 1e-6."""
    if len(record) < 2:
        return 0.0
    shorter = record[:-1]
    return -attacks.mean_of_smallest(shorter, attacks.standardised(shorter, 1e-6), share)


def muse_min_k(record: TokenRecord, share: float) -> float:
    """MUSE's min-k, a loss: floor(k n) tokens, NaN where that is none."""
    return -attacks.min_k(record, share) if int(share * len(record)) else math.nan


def gradient_norms(loaded: LoadedModel, rows: Sequence[TokenizedExample], order: float) -> list[float]:
    """open-unlearning's: mean over the parameter tensors of each one's norm, the last label left out."""
    norms = []
    with trainable(loaded) as parameters:
        for row in rows:
            parts = gradient(loaded, row, parameters, list(row.targets("completion"))[:-1])
            norms.append(torch.stack([torch.linalg.vector_norm(part, order) for part in parts]).mean().item())
    return norms


def privleak(auc: float, reference_auc: float) -> float:
    """open-unlearning's PrivLeak, in percent."""
    ceiling = 1 - reference_auc
    return ((1 - auc) - ceiling) / (ceiling + EPSILON) * 100
