"""Our metrics against the numbers of the published implementations in ../shared/golden/metrics.

golden.py           the stored texts, numbers and models; what a comparison is
open_unlearning.py  locuslab/open-unlearning
muse.py             swj0419/muse_bench
tofu.py             locuslab/tofu
semeval.py          the organisers of SemEval-2025 Task 4
numbers.py          number-level and string-level vectors that need no model
__main__.py         `python -m dev.parity [--docs]`: the table of docs/papers.md

Stored and left out, because the package has no such number: `rel_diff` (how far an AUC is from another in percent of
that; PrivLeak takes both from 1), the KS statistic (forget quality is its p-value), ROUGE's precision (recall and F1
fix it), ROUGE-2 and ROUGE-Lsum, and the largest score of each of MUSE's sets.
"""

from collections.abc import Iterator

from dev.parity import muse, numbers, open_unlearning, semeval, tofu
from dev.parity.golden import Comparison, Golden

ORIGINS = {
    "open-unlearning": open_unlearning.comparisons,
    "MUSE": muse.comparisons,
    "TOFU": tofu.comparisons,
    "SemEval-2025 Task 4": semeval.comparisons,
    "number-level vectors": numbers.comparisons,
}
"""Where the numbers come from -> all comparisons with them."""


def all_comparisons(golden: Golden) -> Iterator[tuple[str, Comparison]]:
    """Origin and comparison, one after the other."""
    for origin, comparisons in ORIGINS.items():
        for comparison in comparisons(golden):
            yield origin, comparison
