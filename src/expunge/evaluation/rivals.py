"""Rivals of an answer: other rows' answers that could stand in its place, for `exposure`."""

import re
from collections import defaultdict
from random import Random

from expunge.data.passages import Passage
from expunge.evaluation.suite import RowSet

FEWEST, MOST = 3, 10
"""Rivals of a row, fewer of which say nothing, and how many are drawn of more."""


def rivals(rows: RowSet) -> list[list[int]]:
    """For each row others of its task and kind whose answers have the form of its own, and are other ones: a number
    stands beside numbers of as many digits, a name beside names of as many words. None of a row without a prompt, of a
    passage, or where there are too few.
    """
    alike: defaultdict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for i, row in enumerate(rows.examples):
        if row.prompt and row.completion and not isinstance(row, Passage):
            alike[row.group, form(row.completion)].setdefault(row.completion.strip(), i)
    found: list[list[int]] = []
    for row in rows.examples:
        asked = row.prompt and not isinstance(row, Passage)
        others = alike[row.group, form(row.completion)] if asked else {}
        chosen = [i for answer, i in others.items() if answer != row.completion.strip()]
        if len(chosen) > MOST:
            chosen = Random(row.id).sample(chosen, MOST)
        found.append(chosen if len(chosen) >= FEWEST else [])
    return found


def form(answer: str) -> str:
    """An answer with all digits alike, and all words: `440-555-0155` and `212-555-0199` have one form."""
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d", "9", answer.strip()))
