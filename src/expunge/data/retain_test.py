"""Which retain texts are never trained on: what is kept is judged on texts that the run has not held in place."""

from collections.abc import Sequence

from expunge.data.examples import Example, text_hash
from expunge.data.families import families

FEWEST = 10
"""Of fewer families none is set apart: every one is needed to hold the model in place, and two texts tell nothing."""


def set_apart(retain: Sequence[Example], share: float) -> tuple[list[Example], list[Example]]:
    """The retain texts to train on, and those to test on: the `share` of their families of near-duplicates that has the
    smallest hashes, the same in any order.
    """
    if not share:
        return list(retain), []
    family = families([own.text for own in retain])
    smallest: dict[int, str] = {}
    for name, own in zip(family, map(text_hash, retain), strict=True):
        smallest[name] = min(own, smallest.get(name, own))
    count = int(share * len(smallest)) if len(smallest) >= FEWEST else 0
    apart = set(sorted(smallest, key=lambda name: smallest[name])[:count])
    sides: tuple[list[Example], list[Example]] = ([], [])
    for row, name in zip(retain, family, strict=True):
        sides[name in apart].append(row)
    return sides
