"""Which membership texts steered an adapter, so that nothing is reported on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Any

from expunge.data.examples import Example, text_hash, text_key
from expunge.data.families import FEWEST as SHINGLES
from expunge.data.families import OVERLAP, families, family_hashes, part_in, shingles_of
from expunge.data.surprise import surprises
from expunge.errors import DataError
from expunge.utils.keys import key_file, keyed, of_this_key
from expunge.utils.roc import auc, chance_sd

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FEWEST = 8
"""Fewest selection texts on either side; a membership AUC of fewer says next to nothing."""
HELD = 0.25
"""Part of an unseen text that stands in texts of its family which were trained on, from which on it is seen. A piece of
a page of news may be a notice of the site alone, which is up to a tenth of other pages."""
NOTICE = 4
"""Unseen texts that hold a trained one whole, from which on it is such a notice; fewer are seen, however long."""
OTHER_KIND, DEVIATIONS = 0.4, 4
"""How far from .5 the AUC of words or lengths is where two sides are of different kinds, at least, and in standard
deviations of chance: questions about two authors of TOFU are mostly .1 from those about two others, and up to .39."""
FEWEST_TOLD = 30
"""Fewest texts of either side of which that is told: 20 about one author are often .4 from those about another."""
FEWEST_ATTACKED = 16
"""Texts on either side of an attack that can acquit: of 8 a true AUC of .8 is within what chance allows in 38 %, of 16
in 9 %."""


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
    for number, place in zip(family, zip(kinds, surprise, hashes, strict=True), strict=True):
        of[number] = min(place, of.get(number, place))
    names = family_hashes(family, hashes)
    order = sorted(of, key=lambda number: (of[number][:2], names[number]))
    if len(order) % 2:
        order.pop(len(order) // 2)
    chosen = {min(pair, key=names.__getitem__) for pair in zip(order[::2], order[1::2], strict=True)}
    return [number in chosen for number in family]


def unseen_texts(nonmembers: Sequence[Example], trained: Sequence[Example], held: float = HELD) -> list[Example]:
    """Those of `nonmembers` that were not trained on, in whatever clothes.

    Args:
        nonmembers: The texts.
        trained: Texts that were trained on.
        held: Part of a text that must stand in those of its family among these; 0 where having any is enough.
    """
    if not nonmembers:
        return []
    family, same = families([*trained, *nonmembers]), set(map(text_key, trained))
    names = family[len(trained) :]
    known: dict[int, set[tuple[str, ...]]] = {name: set() for name in {*family[: len(trained)]} & {*names}}
    pages: dict[int, list[tuple[int, set[tuple[str, ...]]]]] = {name: [] for name in known}
    for at, name in enumerate(names):
        if name in known:
            pages[name].append((at, shingles_of(nonmembers[at])))
    whole: set[int] = set()  # unseen texts in which one stands that was trained on
    for text, name in zip(trained, family, strict=False):
        if name in known:
            shingles = shingles_of(text)
            known[name] |= shingles
            least = max(SHINGLES, OVERLAP * len(shingles))
            holding = [at for at, page in pages[name] if len(shingles & page) >= least]
            whole.update(holding if len(holding) < NOTICE else ())
    return [
        text
        for at, (text, name) in enumerate(zip(nonmembers, names, strict=True))
        if text_key(text) not in same and (name not in known or (at not in whole and part_in(text, known[name]) < held))
    ]


@dataclass(frozen=True)
class Side:
    """The texts of one side, forgotten or unseen, and the number of each one's family (`families`)."""

    texts: list[Example]
    family: list[int]


@dataclass(frozen=True)
class Halves:
    """The texts that steer a run, and those beside them that are too short for membership.

    Attributes:
        members: Half of the forgotten documents.
        nonmembers: Half of the unseen documents.
        short: Half of the unseen texts that are no documents, which are too short for membership.
        others: The other half of these, which does not steer; with `short` they set the targets of texts like them.
    """

    members: list[Example]
    nonmembers: list[Example]
    short: list[Example]
    others: list[Example]

    @property
    def hashes(self) -> list[str]:
        """`text_hash` of each text that steers, sorted."""
        return sorted({*example_hashes([*self.members, *self.nonmembers, *self.short])})


def documents(members: Sequence[Example], nonmembers: Sequence[Example]) -> list[Side]:
    """The texts, forgotten and unseen, of which one half may steer and the other be reported.

    A membership attack reads documents: where there are enough of them, texts much shorter than most are left out.

    Raises:
        DataError: Half of a side is fewer than `FEWEST`, or all of it are near-duplicates of each other, which cannot
            be halved.
    """
    found = [Side(texts, families(texts)) for texts in long_alone(members, nonmembers)]
    for name, side in zip(("texts to forget", "unseen texts"), found, strict=True):
        if len(side.texts) > 1 and len(set(side.family)) == 1:
            raise DataError(
                f"one half of the {name} steers and the other is reported, and all {len(side.texts)} are "
                "near-duplicates of each other, which are never divided: texts that differ are needed"
            )
    counts = [len(set(example_hashes(side))) for side in (members, nonmembers)]
    if min(counts) < 2 * FEWEST:
        raise DataError(
            f"{2 * FEWEST} texts to forget are needed as well as {2 * FEWEST} unseen ones, since one half of each "
            f"steers and the other is reported, and there are {counts[0]} and {counts[1]} different ones"
        )
    return found


def long_alone(members: Sequence[Example], nonmembers: Sequence[Example]) -> list[list[Example]]:
    """Both sides without the texts that are much shorter than most; whole where few would be left on one."""
    sides, least = (members, nonmembers), _least_length([*members, *nonmembers])
    long = [[text for text in side if length(text) >= least] for side in sides]
    enough = all(len(set(example_hashes(side))) // 2 >= FEWEST for side in long)
    return long if enough else [[*side] for side in sides]


def split_off(
    sides: Sequence[Side],
    unseen: Sequence[Example],
    known: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    warn: Callable[[str], None] = lambda _: None,
) -> Halves:
    """The selection half of each side of `documents`, and both halves of the unseen texts that are no documents.

    Args:
        sides: Forgotten and unseen documents.
        unseen: All unseen texts.
        known: Texts to keep, which say how surprising the others are.
        tokenizer: The model's.
        warn: Called with a sentence where the unseen documents are of another kind than the forgotten ones.

    Raises:
        DataError: Near-duplicates, which are never divided, leave next to nothing in one of the halves.
    """
    long = set(map(id, sides[1].texts))
    short = [text for text in unseen if id(text) not in long]
    *surprise, of_short = surprises(tokenizer, known, [*(side.texts for side in sides), short])
    if told := another_kind("their words", surprise) or another_kind(
        "their lengths", [[length(text) for text in side.texts] for side in sides]
    ):
        warn(told)
    members, nonmembers = map(_half, sides, surprise)
    return Halves(members, nonmembers, *_short_halves(sides[1], nonmembers, short, of_short))


def enough_unseen(unseen: Sequence[Example]) -> bool:
    """Whether there are as many different unseen texts as are needed, which are not all near-duplicates."""
    return len({*example_hashes(unseen)}) >= 2 * FEWEST and len({*families(unseen)}) > 1


def unseen_alone(unseen: Sequence[Example], known: Sequence[Example], tokenizer: "PreTrainedTokenizerBase") -> Halves:
    """Half of the unseen texts, for targets where the texts to forget are too few to steer; the others are reported on.

    Raises:
        DataError: Near-duplicates leave next to nothing in one of the halves.
    """
    (surprise,) = surprises(tokenizer, known, [unseen])
    return Halves([], _half(Side([*unseen], families(unseen)), surprise), [], [])


def _half(side: Side, surprise: Sequence[float]) -> list[Example]:
    """The selection half of one side."""
    hashes = example_hashes(side.texts)
    half = selection_half(hashes, [text.group for text in side.texts], surprise, side.family)
    steering = {*compress(hashes, half)}
    others = {*hashes} - steering
    if min(len(steering), len(others)) < FEWEST // 2:
        raise DataError(
            f"{len(steering)} texts would steer the run and {len(others)} be reported on, of {len(hashes)} on one "
            "side, since near-duplicates are never divided: give texts that differ more"
        )
    return list(compress(side.texts, half))


def _short_halves(
    side: Side, steering: Sequence[Example], short: Sequence[Example], surprise: Sequence[float]
) -> tuple[list[Example], list[Example]]:
    """Both halves of the unseen texts that are no documents; a near-duplicate of documents goes with them.

    Args:
        side: The unseen documents.
        steering: Those of them that steer.
        short: The other unseen texts.
        surprise: Of each of these, in nats.
    """
    if not short:
        return [], []
    family, chosen = families([*side.texts, *short]), set(example_hashes(steering))
    steers: dict[int, bool] = {}
    for name, digest in zip(family, example_hashes(side.texts), strict=False):
        steers[name] = steers.get(name, False) or digest in chosen
    names = family[len(side.texts) :]
    free = [at for at, name in enumerate(names) if name not in steers]
    half = selection_half(
        example_hashes([short[at] for at in free]),
        [short[at].group for at in free],
        [surprise[at] for at in free],
        [names[at] for at in free],
    )
    steers |= {names[at]: selected for at, selected in zip(free, half, strict=True)}
    first = [text for text, name in zip(short, names, strict=True) if steers[name]]
    return first, [text for text, name in zip(short, names, strict=True) if not steers[name]]


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
    return [row for row, plain in zip(examples, example_hashes(examples), strict=True) if keyed(plain) not in left_out]
