"""Metrics and membership attacks; `registry.py` has the decorators, and every other file here registers its own.

memorization.py  of the record of a text's tokens (record.py)
generations.py   of what the model said; key_facts.py whether it is the fact, refusal.py whether it declines
truth_ratio.py   of the losses of right and wrong answers
attacks.py       scores of membership attacks, larger = more likely a member
aggregate.py     benchmark-level numbers
"""

import importlib
import pkgutil

from expunge.evaluation.metrics.record import TokenRecord
from expunge.evaluation.metrics.registry import ATTACKS, METRICS, Metric, attack, metric

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["ATTACKS", "METRICS", "Metric", "TokenRecord", "attack", "metric"]
