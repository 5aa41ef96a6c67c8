"""Which texts are one text in other clothes: the same but for case, punctuation, white space or a few words.

What is measured on a text says little about a model that was trained, or stopped, on a near copy of it. So families
stay on one side wherever texts are split, and a text whose family was trained on counts as seen.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

from expunge.data.words import words

SHINGLE = 3
"""Words (single characters in scripts that are written without spaces) that stand for a place in a text."""
OVERLAP = 0.6
"""Two texts are of one family when they share this part of the shingles of the shorter one. Sentences of one template
with other names share less, a text with another last word more."""
FEWEST = 5
"""Texts with fewer shingles are of one family only when they are the same."""
COMMON = 64
"""Shingles that stand in more texts than this are turns of phrase and say nothing."""


def normalized(text: str) -> str:
    """The text without what does not make it another one: compatibility forms, case, punctuation, white space."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = (char if unicodedata.category(char)[0] in "LMN" else " " for char in folded)
    return " ".join("".join(kept).split())


def families(texts: Sequence[str], overlap: float = OVERLAP) -> list[int]:
    """A number for each text, the place of the first one of its family; `overlap` is as for `OVERLAP`."""
    keys = [normalized(text) or text for text in texts]
    parent = list(range(len(texts)))

    def root(at: int) -> int:
        while parent[at] != at:
            parent[at] = parent[parent[at]]
            at = parent[at]
        return at

    def join(one: int, other: int) -> None:
        low, high = sorted((root(one), root(other)))
        parent[high] = low

    first: dict[str, int] = {}
    for at, key in enumerate(keys):
        join(first.setdefault(key, at), at)
    shingles = [_shingles(key) for key in keys]
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for at, own in enumerate(shingles):
        if first[keys[at]] == at and len(own) >= FEWEST:
            for shingle in own:
                places[shingle].append(at)
    for at, own in enumerate(shingles):
        if first[keys[at]] != at or len(own) < FEWEST:
            continue
        shared = Counter(
            other for shingle in own if len(places[shingle]) <= COMMON for other in places[shingle] if other < at
        )
        for other, count in shared.items():
            if count >= overlap * min(len(own), len(shingles[other])):
                join(at, other)
    return [root(at) for at in range(len(texts))]


def _shingles(key: str) -> set[tuple[str, ...]]:
    found = words(key)
    return {tuple(found[at : at + SHINGLE]) for at in range(len(found) - SHINGLE + 1)}
