"""A plain text in pieces, each a text of its own: whole paragraphs, as few as hold enough words."""

from collections.abc import Iterator
from itertools import pairwise

import regex

from expunge.data.words import words

FEWEST, MOST = 100, 400
"""Words of a piece, at least, and of a paragraph that is not divided."""
BREAKS = tuple(map(regex.compile, (r"\n\s*\n", r"\n", r"(?<=[.!?…])\s+|(?<=[。！？।])")))
"""Where a text is divided: between paragraphs, and within a long one between lines, else between sentences."""


def pieces(text: str) -> list[tuple[int, str]]:
    """The pieces in their order, each with the line that it begins in, from 1; together they are the whole text.

    A last piece of fewer words than the others belongs to the one before it.
    """
    ends, held = list[int](), FEWEST
    for end, count in _parts(text, 0, len(text)):
        if held < FEWEST:
            ends[-1], held = end, held + count
        else:
            ends.append(end)
            held = count
    if held < FEWEST and len(ends) > 1:
        del ends[-2]
    found, line, before = list[tuple[int, str]](), 1, 0
    for first, last in pairwise([0, *ends]):
        start = last - len(text[first:last].lstrip())
        line += text.count("\n", before, start)
        before = start
        found.append((line, text[start:last].rstrip()))
    return found


def _parts(text: str, start: int, end: int, level: int = 0) -> Iterator[tuple[int, int]]:
    """Where paragraphs end, or the parts of those that are long, and their words; none of white space alone."""
    breaks = [found.end() for found in BREAKS[level].finditer(text, start, end)]
    for first, last in pairwise([start, *breaks, end]):
        count = len(words(text[first:last]))
        if count > MOST and level + 1 < len(BREAKS):
            yield from _parts(text, first, last, level + 1)
        elif text[first:last].strip():
            yield last, count
