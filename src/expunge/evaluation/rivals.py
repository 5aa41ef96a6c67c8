"""Rivals of an answer: other rows' answers that could stand in its place, for `exposure`."""

from collections import defaultdict
from random import Random

from expunge.data.examples import Example
from expunge.data.kinds import form
from expunge.data.passages import Passage
from expunge.evaluation.mismatched import under
from expunge.evaluation.suite import RowSet

FEWEST, MOST = 3, 10
"""Rivals of a row, fewer of which say nothing, and how many are drawn of more."""


def rivals(rows: RowSet) -> list[list[Example]]:
    """For each row, after its prompt, answers of others of its task and kind that have the form of its own: a number
    stands beside numbers of as many digits, a name beside names of as many words. None of a row without a prompt, of a
    passage, or where there are too few.
    """
    alike: defaultdict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for i, row in enumerate(rows.examples):
        if row.prompt and row.completion and not isinstance(row, Passage):
            alike[row.group, form(row.completion)].setdefault(row.completion.strip(), i)
    found: list[list[Example]] = []
    for row in rows.examples:
        asked = row.prompt and not isinstance(row, Passage)
        others = alike[row.group, form(row.completion)] if asked else {}
        chosen = [i for answer, i in others.items() if answer != row.completion.strip()]
        if len(chosen) > MOST:
            chosen = Random(row.id).sample(chosen, MOST)
        few = len(chosen) < FEWEST
        found.append([] if few else [under(row, rows.examples[i]) for i in chosen])
    return found
