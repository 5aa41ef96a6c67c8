"""What drawn answers give away, beyond the one that greedy decoding says."""

from collections.abc import Sequence
from statistics import fmean, stdev

from expunge.evaluation.metrics.generations import rouge
from expunge.evaluation.metrics.registry import knowledge


@knowledge(
    "expectation_deviation", high=2, on="forget", family="text", source="Scholten et al. 2025, ED score (2410.03523)"
)
def expectation_deviation(samples: Sequence[str], expected: str) -> float:
    """Mean plus two standard deviations of the ROUGE-L recall of the drawn answers

    What is at stake is the answer that is drawn once in a while, which a mean hides. One sample has no deviation.
    """
    found = [rouge(sample, expected)["rouge_l_recall"] for sample in samples]
    return fmean(found) + (2 * stdev(found) if len(found) > 1 else 0.0)
