"""SURP: a membership attack that reads the tokens at which the model is certain, and wrong."""

import numpy as np

from expunge.evaluation.metrics.record import TokenRecord
from expunge.evaluation.metrics.registry import attack

MAX_ENTROPY = 2.0
"""Nats of a token's distribution below which the model counts as certain (the paper's)."""
UNLIKELY = 40
"""Percentile of the text's own log-probabilities below which a token counts as a mistake."""


@attack("surprising_tokens", default=False, source="Zhang and Wu 2024, SURP (2407.21248)")
def surprising_tokens(record: TokenRecord) -> float:
    """Mean log p of the tokens that are unlikely where the model is certain

    Unlearning leaves such tokens behind: what was pushed away stands where nothing else was learned to follow. 0, the
    largest value, of a text in which nothing is surprising, as of one that is known by heart.
    """
    record.require_targets()
    certain = -record.mean_logp < MAX_ENTROPY
    surprising = certain & (record.logps < np.percentile(record.logps, UNLIKELY))
    return float(record.logps[surprising].mean()) if surprising.any() else 0.0
