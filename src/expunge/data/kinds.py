"""Which kind of text a row is, where the rows themselves do not say it."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from expunge.data.examples import Example
from expunge.data.holdout import FEWEST

ASKED, ALONE = "after a prompt", "texts alone"


def with_kinds(sets: Mapping[str, Sequence[Example]]) -> dict[str, list[Example]]:
    """The sets, by name; where of one task `FEWEST` texts to `forget` and more stand after prompts, and as many without
    any, labels tell them apart, since an answer is neither as short nor as hard as a story.
    """
    shapes = Counter((row.group, _shape(row)) for row in sets["forget"])
    mixed = {group for group, _ in shapes if min(shapes[group, ALONE], shapes[group, ASKED]) >= FEWEST}

    def named(row: Example) -> Example:
        if row.group not in mixed:
            return row
        return replace(row, label=f"{row.group}, {_shape(row)}" if row.group else _shape(row))

    return {name: [*map(named, rows)] for name, rows in sets.items()}


def _shape(row: Example) -> str:
    return ALONE if row.bare else ASKED


def form(answer: str) -> str:
    """An answer with all digits alike, and all words: `440-555-0155` and `212-555-0199` have one form."""
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d", "9", answer.strip()))
