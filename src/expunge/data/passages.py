"""A text without a prompt as a question: it is read whole, and to be asked its first half is given."""

from collections.abc import Sequence
from dataclasses import dataclass

import regex

from expunge.data.examples import Example
from expunge.data.words import words

FEWEST = 16
"""Words of a text that is divided; of a shorter one half says too little."""
_SPACE = regex.compile(r"(?<=\S)\s(?=\s*\S)")
"""Where words are parted."""


@dataclass(frozen=True)
class Passage(Example):
    """A text without a prompt; what is called one here is its first half.

    Nothing stands between the halves, and no frame around them: `tokenize` gives the tokens of the text alone.
    """


def divided(rows: Sequence[Example]) -> list[Example]:
    """The rows, those without a prompt as passages; short ones stay as they are.

    The halves are parted at the white space that is nearest to the middle, within the middle half of the text, else in
    the middle. Joined they are the text.
    """
    return [_divided(row) if row.bare else row for row in rows]


def alone(row: Example) -> Example:
    """The row as it was before it was divided, if it was."""
    if not isinstance(row, Passage):
        return row
    return Example(**vars(row) | {"prompt": "", "completion": row.prompt + row.completion})


def _divided(row: Example) -> Example:
    text = row.completion
    if len(words(text)) < FEWEST:
        return row
    middle = len(text) // 2
    places = (found.start() for found in _SPACE.finditer(text, len(text) // 4, len(text) - len(text) // 4))
    at = min(places, key=lambda place: abs(place - middle), default=middle)
    return Passage(**vars(row) | {"prompt": text[:at], "completion": text[at:]})
