"""Metrics: short functions of a record, of texts or of numbers, and `METRICS`, which says how to read each.

memorization.py  of the record of a text's tokens
text.py          of what the model said
truth_ratio.py   of the losses of right and wrong answers
membership.py    scores of membership attacks, larger = more likely a member
aggregate.py     benchmark-level numbers
"""

from expunge.evaluation.metrics.registry import METRICS, Direction, Metric
from expunge.evaluation.metrics.token_record import TokenRecord

__all__ = ["METRICS", "Direction", "Metric", "TokenRecord"]
