"""Exposure: whether the right answer can be picked out of others, however unlikely all of them are."""

from collections.abc import Sequence

from expunge.evaluation.metrics.record import TokenRecord
from expunge.evaluation.metrics.registry import knowledge


@knowledge(
    "exposure", family="memorization", on="forget", by_task=True,
    source="after Carlini et al. 2019, The Secret Sharer (1802.08232)",
)  # fmt: skip
def exposure(record: TokenRecord, rivals: Sequence[TokenRecord]) -> float:
    """Share of other rows' answers of the same form that are less likely after its prompt than its own; ties one half

    The paper's exposure is the logarithm of the own answer's rank among all possible ones; its mean over rows is here
    an AUC, .5 for a model that knows nothing of any.
    """
    own, others = record.logps.sum(), [rival.logps.sum() for rival in rivals]
    return float(sum((other < own) + 0.5 * (other == own) for other in others) / len(others))
