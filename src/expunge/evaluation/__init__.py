"""What is left after unlearning: the official scorers, and the results files that they fill.

Importing this package loads no model code; `expunge.evaluation.run` runs a model.
"""

from expunge.evaluation.predictions import (
    Predictions,
    read_any,
    read_mmlu,
    read_organisers,
    read_predictions,
    write_predictions,
)
from expunge.evaluation.results import read_results, write_results
from expunge.evaluation.semeval import Prediction, SemevalScores, membership_auc, score

__all__ = [
    "Prediction",
    "Predictions",
    "SemevalScores",
    "membership_auc",
    "read_any",
    "read_mmlu",
    "read_organisers",
    "read_predictions",
    "read_results",
    "score",
    "write_predictions",
    "write_results",
]
