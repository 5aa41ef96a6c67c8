"""Whether unseen texts are known: how many of those whose completions cannot be guessed are said."""

from collections import Counter
from collections.abc import Iterator, Sequence

from expunge.data.examples import Example
from expunge.data.holdout import FEWEST
from expunge.data.passages import Passage
from expunge.data.words import words
from expunge.evaluation.measurement import NO_ROWS, Measurement
from expunge.evaluation.metrics.key_facts import says
from expunge.evaluation.metrics.registry import HOLDOUT
from expunge.evaluation.suite import Suite
from expunge.utils.text import numbered

TELLING = 3
"""Fewest words of a completion that nobody gives word for word by chance, where no other row has the same."""
UNLIKE = 0.8
"""Share of the shorter completions of a kind that no other row has, from which on they are no choice among a few."""
STRETCH = 3
"""Fewest letters in a row that a word has from its prompt, and two thirds of its own: "jsmith" of "John Smith"."""


def unseen_said(suite: Suite, measurement: Measurement) -> dict[str, dict[str, int]]:
    """How many unseen texts are said word for word, of how many whose completions cannot be guessed (`_telling`), and
    of how many the fact is said, in whatever words. Empty where none was asked for.

    A completion is said where the answer is equal to it, or each of its tokens is the model's first choice; of a text
    that is read whole it is the second half.
    """
    if not any((HOLDOUT, name) in measurement.rows for name in ("exact_match", "extraction_strength")):
        return {}
    rows, telling = suite[HOLDOUT].examples, _telling(suite)
    matches, strengths = (
        measurement.rows.get((HOLDOUT, name), NO_ROWS).by_id for name in ("exact_match", "extraction_strength")
    )
    only = _only_words(suite)
    answers = measurement.said.get(HOLDOUT) or [None] * len(rows)
    said = facts = 0
    for at, name in enumerate(numbered(row.id for row in rows)):
        if at not in telling:
            continue
        least = 0.5 if isinstance(rows[at], Passage) or not rows[at].prompt else 1.0
        known = matches.get(name) == 1 or strengths.get(name, 0.0) >= least
        said += known
        facts += known or _fact(rows[at], answers[at], only[at])
    return {"unseen_said": {"said": said, "texts": len(telling), "facts": facts}}


def _telling(suite: Suite) -> set[int]:
    """The places of the unseen rows whose completions cannot be guessed: of `TELLING` new words and more that no other
    row says after its own; and shorter ones, where nearly all of their kind are unlike each other, so that yes and no
    and the names of categories do not count.
    """
    found = [(row.group, _new(row)) for rows in suite.sets for row in rows.examples]
    times = Counter(new for _, new in found)
    short = [(group, new) for group, new in found if 0 < len(new) < TELLING]
    many, alone = Counter(group for group, _ in short), Counter(group for group, new in short if times[new] == 1)
    unlike = {group for group, count in many.items() if count >= FEWEST and alone[group] >= UNLIKE * count}
    answers = [(row.group, _new(row)) for row in suite[HOLDOUT].examples]
    return {
        at
        for at, (group, new) in enumerate(answers)
        if new and times[new] == 1 and (len(new) >= TELLING or group in unlike)
    }


def _new(row: Example) -> tuple[str, ...]:
    """The words of a completion that do not follow from its prompt: two of one template differ in the others alone."""
    return tuple(_beyond(words(row.prompt), words(row.completion)))


def _beyond(asked: Sequence[str], said: Sequence[str]) -> Iterator[str]:
    known, text = {*asked}, "".join(asked)
    for word in said:
        long = max(STRETCH, -(-2 * len(word) // 3))
        if word not in known and not any(word[at : at + long] in text for at in range(len(word) - long + 1)):
            yield word


def _only_words(suite: Suite) -> list[set[str]]:
    """Of each unseen row the new words that no row about something else says."""
    about: dict[str, set[tuple[str, str]]] = {}
    for rows in suite.sets:
        for row, document in zip(rows.examples, rows.documents, strict=True):
            for word in {*words(row.completion)}:
                about.setdefault(word, set()).add((rows.name, document))
    return [{word for word in _new(row) if len(about[word]) == 1} for row in suite[HOLDOUT].examples]


def _fact(row: Example, answer: str | None, only: set[str]) -> bool:
    """Whether an answer holds at least half of the key words that this row alone has."""
    keywords = [word for word in row.keywords if only & {*words(word)}]
    return answer is not None and bool(keywords) and says(answer, keywords, row.completion)
