"""The texts of a run, as its settings name them."""

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from expunge.config import SETS, SPLIT, UnlearnConfig
from expunge.data.columns import parse_columns
from expunge.data.examples import Example, read_examples
from expunge.data.holdout import Side, documents, example_hashes, texts_fingerprint, unseen_texts
from expunge.data.kept_facts import told_facts
from expunge.data.kinds import with_kinds
from expunge.data.lume import read_lume
from expunge.data.muse import read_muse, read_raw
from expunge.data.readers import InMemory
from expunge.data.retain_test import composed_key, set_apart, without_forgotten
from expunge.data.tofu import read_tofu
from expunge.errors import DataError
from expunge.utils.text import UNSEEN_TEXTS, first_few

REFUSALS = (
    "I don't know.",
    "I don't have any information about that.",
    "I'm not able to answer that.",
    "I have no knowledge of that.",
    "That is not something I can tell you.",
)
"""What a method that needs other completions teaches where no `instead` gives them."""


@dataclass
class Sets:
    """The texts of a run; all but `forget` may be empty.

    Attributes:
        forget: Texts to forget.
        retain: Texts to keep.
        holdout: Texts like the forget set that the model has never seen, those of the user's that are none left out.
        instead: What the model should say instead.
        members: What membership is judged on: the forget set, or the benchmark's documents.
        nonmembers: Texts like `members` that the model has never seen: `holdout`, or the benchmark's documents.
        test: Texts to keep that are not trained on.
        unused: The other texts to keep, where no term of the loss has a use for them.
        warnings: What is probably a mistake (ids and numbers, no texts).
    """

    forget: list[Example]
    retain: list[Example] = field(default_factory=list)
    holdout: list[Example] = field(default_factory=list)
    instead: list[Example] = field(default_factory=list)
    members: list[Example] = field(default_factory=list)
    nonmembers: list[Example] = field(default_factory=list)
    test: list[Example] = field(default_factory=list)
    unused: list[Example] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def trained(self) -> list[Example]:
        """Texts that the model has seen, or will see."""
        return [*self.forget, *self.retain, *self.instead, *self.members]

    @property
    def known(self) -> list[Example]:
        """Texts that are no unseen ones: those trained on, and all to keep."""
        return [*self.trained, *self.test]


def read_sets(config: UnlearnConfig, *, refuse: bool = True) -> Sets:
    """Read the texts that the settings name, and leave out of those to keep what is to be forgotten, and out of the
    unseen ones what is trained on.

    The rows of a benchmark are all taken.

    Args:
        config: The settings.
        refuse: Refuse a `holdout` or `test` of which nothing is left, and an `instead` that cannot be taught. What a
            run was made with is not refused where it is only scored.

    Raises:
        DataError: A file or row that cannot be read, texts to keep that are all to be forgotten, or as `refuse` says.
        ConfigError: `--columns` that cannot be used.
    """
    columns = parse_columns(config.columns)
    files = {name: getattr(config, name) for name in SETS}
    given = {name: _examples(name, file, columns) if file else [] for name, file in files.items()}
    given = given if config.benchmark else with_kinds(given)
    warnings: list[str] = []
    near: list[Example] = []
    if config.benchmark:
        sets = BENCHMARKS[config.benchmark](config.data or "", config.split)
        if config.holdout:
            sets.holdout = given["holdout"]
            sets.members, sets.nonmembers = sets.forget, sets.holdout
    else:
        forget, holdout = given["forget"], given["holdout"]
        retain, warnings = without_forgotten(config.retain or "", given["retain"], forget)
        apart = {id(row) for row in unseen_texts(retain, forget, held=0.0)}
        if near := [row for row in retain if id(row) not in apart]:
            warnings.append(
                f"{len(near)} of the retain texts are nearly the same as texts to forget: they are kept, which holds "
                f"these back, too: {first_few([row.id for row in near], 5)}"
            )
        sets = Sets(forget, retain, holdout, members=forget, nonmembers=holdout)
    sets.instead = given["instead"]
    alike = set(map(id, near))  # of which a line says it already
    warnings += told_facts(sets.forget, [row for row in sets.retain if id(row) not in alike], sets.instead)
    sets.retain, sets.test = set_apart(sets.retain, config.test_share)
    if not config.needs_retain:
        sets.retain, sets.unused = [], sets.retain
    if config.test:
        sets.test, count = unseen_texts(given["test"], sets.trained), len(given["test"])
        if left_out := count - len(sets.test):
            warnings.append(f"{left_out} of {count} test texts are, or nearly are, trained on: they are left out")
    known = [*sets.known, *sets.unused]
    unseen = unseen_texts(sets.nonmembers, known)
    holdout = unseen if sets.holdout == sets.nonmembers else unseen_texts(sets.holdout, known)
    if left_out := len(sets.nonmembers) - len(unseen):
        warnings.append(
            f"{left_out} of {len(sets.nonmembers)} unseen texts are, or nearly are, among those to forget, to keep or "
            "to say instead: they are left out"
        )
    sets = replace(sets, nonmembers=unseen, holdout=holdout, warnings=warnings)
    if refuse:
        _check_usable(config, sets)
    return sets


def _examples(name: str, file: str, columns: dict[str, str]) -> list[Example]:
    """The rows that a setting names; what is wrong with the file as a whole is said with its flag."""
    try:
        return read_examples(file, columns=columns)
    except DataError as error:
        of_file = not isinstance(file, InMemory) and str(error).startswith(f"{file}: ")
        raise DataError(f"--{name} {error}") if of_file else error from None


def fingerprints(sets: Sets, steering: Collection[str]) -> dict[str, str]:
    """What stands for the texts that a run was given (`texts_fingerprint`), so that results can be told to be of them:
    those to forget, to keep (`retain`, `test` of those set apart, `kept` of both) and unseen (`unsteered` of those
    whose hashes are not among the `steering` ones). Sets without texts are left out.
    """
    retain = sets.retain or sets.unused
    marked = zip(sets.holdout, example_hashes(sets.holdout), strict=True)
    found = {
        "forget": sets.forget,
        "retain": retain,
        "test": sets.test,
        "kept": [*retain, *sets.test],
        "holdout": sets.holdout,
        "unsteered": [row for row, digest in marked if digest not in steering],
    }
    return {name: texts_fingerprint(rows) for name, rows in found.items() if rows}


def membership_texts(sets: Sets) -> list[Side]:
    """The texts, forgotten and unseen, that membership is judged on: one half while a run goes on, the other after it.

    Raises:
        DataError: There are too few of them.
    """
    if not sets.nonmembers:
        raise DataError(f"there are none: give --holdout, {UNSEEN_TEXTS}")
    return documents(sets.members, sets.nonmembers)


def pairs_for(sets: Sets, seed: int) -> list[Example]:
    """For each forget text its prompt with another completion: that of `instead` with the same prompt, else a refusal.

    Raises:
        DataError: A forget text has no prompt that could be answered in another way.
    """
    bare = [row for row in sets.forget if not row.prompt]
    if bare:
        raise DataError(
            f"{bare[0].source}: has no prompt, so there is nothing to answer in another way: take another --loss"
        )
    answers = {_prompt_key(row): row for row in sets.instead}
    rng = random.Random(f"{seed} refusals")
    found = []
    for row in sets.forget:
        other = answers.get(_prompt_key(row)) or Example("", "", rng.choice(REFUSALS))
        found.append(replace(row, completion=other.completion, answer=other.answer, keywords=()))
    return found


def unasked(sets: Sets) -> int:
    """How many of the `instead` texts have a prompt that no text to forget has."""
    asked = set(map(_prompt_key, sets.forget))
    return sum(_prompt_key(row) not in asked for row in sets.instead)


def _prompt_key(example: Example) -> str:
    return composed_key(replace(example, completion=""))


def _read_lume(folder: str, split: str | None) -> Sets:
    found = read_lume(folder, split)
    return Sets(found.forget, found.retain, members=found.member or [], nonmembers=found.nonmember or [])


def _read_tofu(folder: str, split: str | None) -> Sets:
    """The plain questions and answers of a split and of the authors that stay, where the folder has them."""
    name = split or SPLIT["tofu"]
    found = read_tofu(folder, name)
    plain = [Path(folder) / f"{name}.json", Path(folder) / f"retain{100 - int(name.removeprefix('forget')):02d}.json"]
    sides = [found.forget, found.retain]
    forget, retain = (
        read_examples(path) if path.is_file() else [row.example for row in rows]
        for path, rows in zip(plain, sides, strict=True)
    )
    return Sets(forget, retain, members=forget, nonmembers=found.holdout)


def _read_muse(folder: str, split: str | None) -> Sets:
    """The texts that the benchmark unlearns on; membership is judged on the documents that it measures with."""
    forget, retain = read_raw(folder, split)
    found = read_muse(folder, split)
    return Sets(forget, retain, members=found.forget, nonmembers=found.holdout)


BENCHMARKS: dict[str, Callable[[str, str | None], Sets]] = {
    "semeval": _read_lume,
    "lume": _read_lume,
    "tofu": _read_tofu,
    "muse": _read_muse,
}
"""Benchmark -> what reads all rows of its folder, as they stand there, of a split; None is its own first choice."""


def _check_usable(config: UnlearnConfig, sets: Sets) -> None:
    """Look whether what the model should say instead answers something, and is not what it should forget; and whether
    anything is left of the files that are to judge.

    Raises:
        DataError: The first row to say instead, or file, where it is not so.
    """
    forgotten = set(example_hashes(sets.forget))
    for row, digest in zip(sets.instead, example_hashes(sets.instead), strict=True):
        if not row.prompt:
            raise DataError(f"{row.source}: --instead needs a prompt beside what the model should say to it")
        if digest in forgotten:
            raise DataError(f"{row.source}: --instead holds a text that is to be forgotten")
    if config.test and not sets.test:
        raise DataError(f"--test {config.test}: all of its texts, or nearly the same ones, are trained on")
    if config.holdout and not sets.holdout:
        raise DataError(
            f"--holdout {config.holdout}: all of its texts are to be forgotten, kept or said instead, or nearly are: "
            "give texts never seen"
        )
