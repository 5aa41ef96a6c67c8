"""A plain text in pieces, each a text of its own: whole paragraphs, as few as hold enough words."""

from collections.abc import Iterator

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
    found: list[tuple[int, int, int]] = []
    for start, end in _parts(text, 0, len(text)):
        if found and found[-1][2] < FEWEST:
            start = found.pop()[0]
        found.append((start, end, len(words(text[start:end]))))
    if len(found) > 1 and found[-1][2] < FEWEST:
        _, end, _ = found.pop()
        found[-1] = (found[-1][0], end, FEWEST)
    return [(text.count("\n", 0, start) + 1, text[start:end].strip()) for start, end, _ in found]


def _parts(text: str, start: int, end: int, level: int = 0) -> Iterator[tuple[int, int]]:
    """Where paragraphs begin and end, and the parts of those that are long; none without a word."""
    breaks = [found.end() for found in BREAKS[level].finditer(text, start, end)]
    for first, last in zip([start, *breaks], [*breaks, end], strict=True):
        own = text[first:last]
        if level + 1 < len(BREAKS) and len(words(own)) > MOST:
            yield from _parts(text, first, last, level + 1)
        elif own.strip():
            yield first + len(own) - len(own.lstrip()), last
