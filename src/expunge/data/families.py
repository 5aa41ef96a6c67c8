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
COMMON, ALIKE = 64, 0.8
"""Shingles that stand in more than COMMON texts may be turns of phrase: with them, ALIKE of all must be shared."""
FIRST = 4
"""Of the texts of such a shingle so many are compared with the others: it bounds the work, and joins what is alike."""


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
    different = sorted(first)  # the families are the same whatever the order of the texts
    shingles = [own if len(own := _shingles(key)) >= FEWEST else set() for key in different]
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for at, own in enumerate(shingles):
        for shingle in own:
            places[shingle].append(at)
    common = [{shingle for shingle in own if len(places[shingle]) > COMMON} for own in shingles]
    for at, own in enumerate(shingles):
        shared = Counter(other for shingle in own - common[at] for other in places[shingle] if other < at)
        firsts = {other for shingle in common[at] for other in places[shingle][:FIRST] if other < at}
        for other in {*shared, *firsts}:
            least, count = min(len(own), len(shingles[other])), shared[other]
            phrases = len(common[at] & common[other])
            if count >= overlap * least or count + phrases >= max(overlap, ALIKE) * least:
                join(first[different[at]], first[different[other]])
    return [root(at) for at in range(len(texts))]


def _shingles(key: str) -> set[tuple[str, ...]]:
    found = words(key)
    return {tuple(found[at : at + SHINGLE]) for at in range(len(found) - SHINGLE + 1)}
