"""Which texts to keep are trained on: none that is to be forgotten, and a part of the others is left to judge by."""

from collections import Counter
from collections.abc import Sequence
from unicodedata import normalize

from expunge.data.examples import Example, text_hash, text_key
from expunge.data.families import families, family_hashes
from expunge.errors import DataError
from expunge.utils.text import first_few

FEWEST = 10
"""Of fewer families none is set apart: every one is needed to hold the model in place, and two texts tell nothing."""


def composed_key(example: Example) -> str:
    """`text_key` that is the same for letters that are composed otherwise (NFC)."""
    return normalize("NFC", text_key(example))


def without_forgotten(
    source: str, rows: Sequence[Example], forget: Sequence[Example]
) -> tuple[list[Example], list[str]]:
    """The texts to keep but those that are to be forgotten, which goes before; and a line on these, if any.

    Raises:
        DataError: None is left.
    """
    forgotten = set(map(composed_key, forget))
    shared = [at for at, row in enumerate(rows, 1) if composed_key(row) in forgotten]
    if rows and len(shared) == len(rows):
        raise DataError(f"--retain {source}: all of its texts are to be forgotten: give texts to keep")
    left_out = set(shared)
    kept = [row for at, row in enumerate(rows, 1) if at not in left_out]
    told = (
        f"retain: texts that are also in forget are not to keep, and left out: {len(shared):,} "
        f"(rows {first_few(shared, 5)})"
    )
    return kept, [told] if shared else []


def set_apart(retain: Sequence[Example], share: float) -> tuple[list[Example], list[Example]]:
    """The retain texts to train on, and those to test on: whole families of near-duplicates in the order of their
    hashes, the same in any order of the texts, as long as they are at most `share` of the texts.
    """
    if not share:
        return list(retain), []
    family = families(retain)
    places, sizes = family_hashes(family, [*map(text_hash, retain)]), Counter(family)
    room, apart = int(share * len(retain)) if len(places) >= FEWEST else 0, set[int]()
    for name in sorted(places, key=places.__getitem__):
        if sizes[name] <= room:
            apart.add(name)
            room -= sizes[name]
    sides: tuple[list[Example], list[Example]] = ([], [])
    for row, name in zip(retain, family, strict=True):
        sides[name in apart].append(row)
    return sides
