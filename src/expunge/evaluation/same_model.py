"""Whether two models are one, by what they compute: files can be copied, merged and rounded, losses stay."""

import math
from collections.abc import Mapping
from statistics import fmean, pstdev

from expunge.data.holdout import FEWEST
from expunge.evaluation.earlier import texts_in

SAME = 0.03
"""Most that the losses of one model differ after its weights were rounded, of what its rows differ among each other.

In bfloat16 it is up to .007, and .019 where all is known by heart; .09 and more of adapters that differ in the seed
alone, .34 and more of models that were retrained on the same texts (docs/evaluation.md).
"""


def same_model(ours: Mapping[str, float], theirs: Mapping[str, float]) -> bool:
    """Whether the losses of rows, by id, are those of one model; not told of fewer than `FEWEST` texts."""
    shared = [name for name in ours if name in theirs]
    if texts_in(shared) < FEWEST:
        return False
    apart = math.sqrt(fmean((ours[name] - theirs[name]) ** 2 for name in shared))
    return apart <= SAME * pstdev(ours[name] for name in shared)
