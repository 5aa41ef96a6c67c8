"""Which texts are one text in other clothes: the same but for case, punctuation, white space or a few words.

What is measured on a text says little about a model that was trained, or stopped, on a near copy of it. So families
stay on one side wherever texts are split, and a text whose family was trained on counts as seen.

Texts that say different things in one frame (a system turn, an instruction, examples of answers) are no copies.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from hashlib import sha256
from itertools import pairwise

from expunge.data.examples import Example
from expunge.data.words import LETTER, common_prefix, words

SHINGLE = 3
"""Words (single characters in scripts that are written without spaces) that stand for a place in a text."""
PER_WORD = 4
"""Characters that stand for a word where they are letters and nothing shows where a word ends."""
OVERLAP = 0.6
"""Two texts are of one family when they share this part of the shingles of the shorter one. Sentences of one template
with other names share less, a text with another last word more."""
FEWEST = 5
"""Texts with fewer shingles are of one family only when they are the same."""
COMMON, ALIKE = 64, 0.8
"""Shingles that stand in more than COMMON texts may be turns of phrase: with them, ALIKE of all must be shared."""
FIRST = 4
"""Of the texts of such a shingle so many are compared with the others: it bounds the work, and joins what is alike."""
FRAME = 8
"""The words in which so many different prompts, or completions, begin or end are their frame: without it texts must be
alike, too."""


def normalized(text: str) -> str:
    """The text without what does not make it another one: compatibility forms, case, punctuation, white space."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = (char if unicodedata.category(char)[0] in "LMN" else " " for char in folded)
    return " ".join("".join(kept).split())


def shingles_of(text: Example) -> set[tuple[str, ...]]:
    """What stands for the places of a text, whatever its clothes."""
    return _shingles(words(normalized(text.text)))


def part_in(text: Example, shingles: set[tuple[str, ...]]) -> float:
    """The part of a text's shingles that is among these; 1 of a text that has none."""
    text_shingles = shingles_of(text)
    return len(text_shingles & shingles) / len(text_shingles) if text_shingles else 1.0


def families(texts: Sequence[Example], overlap: float = OVERLAP) -> list[int]:
    """A number for each text, the place of the first one of its family; `overlap` is as for `OVERLAP`."""
    keys = [normalized(text.text) or text.text for text in texts]
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
    inside = dict(sorted(zip(keys, _without_frames(texts), strict=True), reverse=True))  # of equal texts the least
    shingles = [shingle_set if len(shingle_set := _shingles(words(key))) >= FEWEST else set() for key in different]
    bare = [_shingles(inside[key]) or {tuple(inside[key])} for key in different]
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for at, shingle_set in enumerate(shingles):
        for shingle in shingle_set:
            places[shingle].append(at)
    common = [{shingle for shingle in shingle_set if len(places[shingle]) > COMMON} for shingle_set in shingles]
    for at, shingle_set in enumerate(shingles):
        shared = Counter(other for shingle in shingle_set - common[at] for other in places[shingle] if other < at)
        firsts = {other for shingle in common[at] for other in places[shingle][:FIRST] if other < at}
        for other in {*shared, *firsts}:
            least, count = min(len(shingle_set), len(shingles[other])), shared[other]
            phrases = len(common[at] & common[other])
            alike = count >= overlap * least or count + phrases >= max(overlap, ALIKE) * least
            if alike and len(bare[at] & bare[other]) >= overlap * min(len(bare[at]), len(bare[other])):
                join(first[different[at]], first[different[other]])
    return [root(at) for at in range(len(texts))]


def family_hashes(family: Sequence[int], hashes: Sequence[str]) -> dict[int, str]:
    """Number of each family -> a hash of it; of one text its own, and the same in any order.

    The least hash of many texts is a small one. Hashed again, it says nothing of how many they are.
    """
    members: dict[int, set[str]] = defaultdict(set)
    for number, digest in zip(family, hashes, strict=True):
        members[number].add(digest)
    return {
        number: min(digests) if len(digests) == 1 else sha256(min(digests).encode()).hexdigest()
        for number, digests in members.items()
    }


def _shingles(found: Sequence[str]) -> set[tuple[str, ...]]:
    letters = 2 * sum(map(bool, map(LETTER.match, found))) > len(found)
    size = SHINGLE * (PER_WORD if letters else 1)
    return {tuple(found[at : at + size]) for at in range(len(found) - size + 1)}


def _without_frames(texts: Sequence[Example]) -> list[list[str]]:
    """The words of each text but those of its prompt's frame, and of its completion's where much is left of that: a
    long text with another ending is a copy.
    """
    found: list[list[str]] = [[] for _ in texts]
    for part in ("prompt", "completion"):
        split = [tuple(words(normalized(getattr(text, part)))) for text in texts]
        begin, end = _shared(split), _shared([piece[::-1] for piece in split])
        for whole, piece in zip(found, split, strict=True):
            rest = piece[begin[piece] : max(begin[piece], len(piece) - end[piece[::-1]])]
            little = len(rest) < max(FEWEST + SHINGLE - 1, (1 - OVERLAP) * len(piece))
            whole += piece if part == "completion" and little else rest
    return found


def _shared(parts: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], int]:
    """Words -> how many of them, from the first, `FRAME` different ones of `parts` begin with."""
    order = sorted({*parts})
    alike = [common_prefix(*pair) for pair in pairwise(order)]
    shared = dict.fromkeys(order, 0)
    for at in range(len(order) - FRAME + 1):
        least = min(alike[at : at + FRAME - 1])
        for part in order[at : at + FRAME]:
            shared[part] = max(shared[part], least)
    return shared
