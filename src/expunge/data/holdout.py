"""Which membership texts steered an adapter, so that nothing is reported on them."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Any

from expunge.data.examples import Example, text_hash
from expunge.data.families import families, family_hashes
from expunge.data.surprise import surprises
from expunge.errors import DataError
from expunge.utils.keys import key_file, keyed, of_this_key
from expunge.utils.roc import auc, chance_sd

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Halves = tuple[list[str], list[list[Example]]]
"""Hashes of the texts that steer a run, and these, of each side."""
FEWEST = 8
"""Fewest selection texts on either side; a membership AUC of fewer says next to nothing."""
OTHER_KIND, DEVIATIONS = 0.4, 4
"""How far from .5 the AUC of words or lengths is where two sides are of different kinds, at least, and in standard
deviations of chance: questions about two authors of TOFU are mostly .1 from those about two others, and up to .39."""
FEWEST_TOLD = 30
"""Fewest texts of either side of which that is told: 20 about one author are often .4 from those about another."""


def example_hashes(examples: Sequence[Example]) -> list[str]:
    """`text_hash` of each text."""
    return [text_hash(example) for example in examples]


def selection_half(
    hashes: Sequence[str], kinds: Sequence[str], surprise: Sequence[float], family: Sequence[int]
) -> list[bool]:
    """Which of some texts are for selection: half of the families, the same whatever their order.

    Of two families that follow each other by kind, and in it by how surprising they are, it is the one of the smaller
    hash: so both halves hold as many texts of a kind, and as many easy and hard ones. Of an odd number the middle one
    is left out.

    Args:
        hashes: Of each text.
        kinds: Task and kind of each text.
        surprise: Of each text, in nats.
        family: Number of each text's family (`families`), which is never divided.
    """
    of: dict[int, tuple[str, float, str]] = {}
    for own, place in zip(family, zip(kinds, surprise, hashes, strict=True), strict=True):
        of[own] = min(place, of.get(own, place))
    names = family_hashes(family, hashes)
    order = sorted(of, key=lambda own: (of[own][:2], names[own]))
    if len(order) % 2:
        order.pop(len(order) // 2)
    chosen = {min(pair, key=names.__getitem__) for pair in zip(order[::2], order[1::2], strict=True)}
    return [own in chosen for own in family]


def unseen_texts(nonmembers: Sequence[Example], trained: Sequence[Example]) -> list[Example]:
    """Those of `nonmembers` of whose family nothing was trained on."""
    if not nonmembers:
        return []
    family = families([*trained, *nonmembers])
    seen = set(family[: len(trained)])
    return [own for own, name in zip(nonmembers, family[len(trained) :], strict=True) if name not in seen]


def check_unseen(holdout: str, forget: Sequence[Example], unseen: Sequence[Example]) -> None:
    """Refuse unseen texts, those of `--holdout`, that are the ones to be forgotten.

    Raises:
        DataError: All of them are.
    """
    if set(example_hashes(forget)).issuperset(example_hashes(unseen)):
        raise DataError(f"--holdout {holdout}: all of its texts are to be forgotten: give texts never seen")


@dataclass(frozen=True)
class Side:
    """The texts of one side, forgotten or unseen, and the number of each one's family (`families`)."""

    texts: list[Example]
    family: list[int]


def documents(members: Sequence[Example], nonmembers: Sequence[Example]) -> list[Side]:
    """The texts, forgotten and unseen, of which one half may steer and the other be reported.

    A membership attack reads documents: where there are enough of them, texts much shorter than most are left out.

    Raises:
        DataError: A text is on both sides, half of a side is fewer than `FEWEST`, or all of it are near-duplicates of
            each other, which cannot be halved.
    """
    sides, hashes = (members, nonmembers), [set(example_hashes(side)) for side in (members, nonmembers)]
    both = hashes[0] & hashes[1]
    if both:
        raise DataError(
            f"{len(both)} of the unseen texts are among those to be forgotten: give texts that the model has never seen"
        )
    found = [Side(own, families(own)) for own in long_alone(*sides)]
    for name, side, different in zip(("forgotten", "unseen"), found, hashes, strict=True):
        count, half = len(side.texts), len(different) // 2
        if count > 1 and len(set(side.family)) == 1:
            raise DataError(
                f"0 selection texts on the {name} side: all {count} are near-duplicates of each other, which are "
                "never divided: texts that differ are needed"
            )
        if half < FEWEST:
            raise DataError(
                f"{half} selection texts on the {name} side (half of {count}): {2 * FEWEST} texts to forget are needed "
                f"as well as {2 * FEWEST} unseen ones, and there are {len(hashes[0])} and {len(hashes[1])}"
            )
    return found


def long_alone(members: Sequence[Example], nonmembers: Sequence[Example]) -> list[list[Example]]:
    """Both sides without the texts that are much shorter than most; whole where few would be left on one."""
    sides, least = (members, nonmembers), _least_length([*members, *nonmembers])
    long = [[own for own in side if length(own) >= least] for side in sides]
    enough = all(len(set(example_hashes(side))) // 2 >= FEWEST for side in long)
    return long if enough else [[*side] for side in sides]


def split_off(
    sides: Sequence[Side],
    known: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    warn: Callable[[str], None] = lambda _: None,
) -> Halves:
    """The selection half of each side of `documents`, and the hashes of its texts.

    Args:
        sides: Forgotten and unseen texts.
        known: Texts to keep, which say how surprising the others are.
        tokenizer: The model's.
        warn: Called with a sentence where the unseen texts are of another kind than the forgotten ones.

    Raises:
        DataError: Near-duplicates, which are never divided, leave next to nothing in one of the halves.
    """
    halves, chosen = [], set()
    surprise = surprises(tokenizer, known, [side.texts for side in sides])
    if told := another_kind("their words", surprise) or another_kind(
        "their lengths", [[length(own) for own in side.texts] for side in sides]
    ):
        warn(told)
    for side, own in zip(sides, surprise, strict=True):
        hashes = example_hashes(side.texts)
        half = selection_half(hashes, [text.group for text in side.texts], own, side.family)
        steering = {*compress(hashes, half)}
        others = {*hashes} - steering
        if min(len(steering), len(others)) < FEWEST // 2:
            raise DataError(
                f"{len(steering)} texts would steer the run and {len(others)} be reported on, of {len(hashes)} on one "
                "side, since near-duplicates are never divided: give texts that differ more"
            )
        chosen |= steering
        halves.append(list(compress(side.texts, half)))
    return sorted(chosen), halves


def another_kind(what: str, sides: Sequence[Sequence[float]]) -> str:
    """That a number of each text, taken without a model, tells one side from the other; empty where it does not."""
    found = auc(*sides)
    if min(map(len, sides)) < FEWEST_TOLD or abs(found - 0.5) <= max(
        OTHER_KIND, DEVIATIONS * chance_sd(*map(len, sides))
    ):
        return ""
    return (
        f"without any model {what} tell the texts to forget from the unseen ones in "
        f"{100 * max(found, 1 - found):.0f} of 100 pairs: the unseen texts are of another kind, and say neither how "
        "far to go nor what an attack can tell: give texts like those to forget (--holdout)"
    )


def short_halves(
    unseen: Sequence[Example],
    side: Side,
    steering: Collection[str],
    known: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
) -> tuple[list[Example], list[Example]]:
    """The unseen texts that are too short for membership: the half that steers a run, and those that are reported.

    A near-duplicate of documents goes with them.

    Args:
        unseen: All unseen texts.
        side: Those that are long enough.
        steering: Hashes of the documents that steer.
        known: Texts to keep, as for `split_off`.
        tokenizer: The model's.
    """
    long = set(map(id, side.texts))
    short = [own for own in unseen if id(own) not in long]
    if not short:
        return [], []
    family = families([*side.texts, *short])
    steers: dict[int, bool] = {}
    for name, own in zip(family, example_hashes(side.texts), strict=False):
        steers[name] = steers.get(name, False) or own in steering
    named = list(zip(short, family[len(side.texts) :], strict=True))
    free = [(own, name) for own, name in named if name not in steers]
    texts = [own for own, _ in free]
    (surprise,) = surprises(tokenizer, known, [texts])
    names = [name for _, name in free]
    half = selection_half(example_hashes(texts), [own.group for own in texts], surprise, names)
    steers |= zip(names, half, strict=True)
    return [own for own, name in named if steers[name]], [own for own, name in named if not steers[name]]


def length(example: Example) -> int:
    """Characters of prompt and completion."""
    return len(example.prompt) + len(example.completion)


def _least_length(examples: Sequence[Example]) -> float:
    """Half the length of the text that a character drawn at random stands in, on average."""
    lengths = [length(example) for example in examples]
    return sum(length**2 for length in lengths) / sum(lengths) / 2


def texts_fingerprint(examples: Sequence[Example]) -> str:
    """What stands for a set of texts, whatever their ids and their order: a hash under the user's key."""
    return keyed(*sorted(example_hashes(examples)))


def keyed_hashes(hashes: Sequence[str]) -> list[str]:
    """What a file may say of texts: their hashes under the user's key, which say nothing to anybody else."""
    return sorted(map(keyed, hashes))


def without_selection(examples: Sequence[Example], calibration: dict[str, Any]) -> list[Example]:
    """The texts that did not steer the adapter of a calibration.

    Raises:
        DataError: The calibration was made under another key, so its texts cannot be told.
    """
    left_out = set(calibration["selection_hmac"])
    if not all(map(of_this_key, left_out)):
        raise DataError(
            f"the texts that steered the adapter are known under another key than {key_file()}: score "
            "the adapter where its run was made, or bring that key here"
        )
    return [own for own, plain in zip(examples, example_hashes(examples), strict=True) if keyed(plain) not in left_out]
