"""A folder of the LUME benchmark (SemEval-2025 Task 4) to examples.

Three layouts are known. The organisers' one: `data/forget_<split>-*.parquet`, `data/retain_<split>-*.parquet`,
and the documents of the membership attack in `mia_data/` (split `train`) or `mia_data/<split>/`. The plain one,
which has no splits: `forget.jsonl`, `retain.jsonl` (or .parquet), and the documents beside them or in `mia_data/`. And
the one that the organisers' instructions write: a plain one in a folder of each split (`train/`, `validation/`), the
documents there or where the first one has them.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from expunge.data.examples import Example, read_examples
from expunge.errors import DataError
from expunge.utils.text import first_few

DEFAULT_SPLIT = "validation"
"""What is forgotten and scored where nobody says which split, and there are several."""
SHARD = re.compile(r"(?P<side>forget|retain)_(?P<split>\w+)-(?P<index>\d+)(-of-(?P<count>\d+))?\.parquet")


@dataclass(frozen=True)
class LumeFiles:
    """Where the benchmark's parts lie.

    Attributes:
        forget: Files of the texts to forget, in order.
        retain: Files of the texts to keep, in order.
        member: Documents that the model was trained on; None (with `nonmember`) where the folder has none.
        nonmember: Documents that it has never seen.
        split: The split; None of the plain layout, which has none.
    """

    forget: tuple[Path, ...]
    retain: tuple[Path, ...]
    member: Path | None = None
    nonmember: Path | None = None
    split: str | None = None


@dataclass(frozen=True)
class LumeData:
    """The benchmark's rows; documents are completions without a prompt, None where the folder has none."""

    forget: list[Example]
    retain: list[Example]
    member: list[Example] | None = None
    nonmember: list[Example] | None = None
    split: str | None = None


def find_lume(data_dir: str | Path, split: str | None = None) -> LumeFiles:
    """Find the files of one split; where both layouts are there, the organisers' one counts.

    Args:
        data_dir: The folder that holds `data/` and `mia_data/`, or `forget.jsonl` and `retain.jsonl`, or such folders.
        split: `train` or `validation`; None takes the only one there is, or `validation`. The plain layout ignores it.

    Raises:
        DataError: No such folder, split or file; the message says what was looked for and what is there.
    """
    folder = Path(data_dir)
    try:
        if not folder.is_dir():
            raise DataError(f"{data_dir}: no such folder; give the one that holds the benchmark's data")
        shards = [match for path in sorted(folder.glob("data/*")) if (match := SHARD.fullmatch(path.name))]
        if shards:
            return _find_split(folder, shards, split)
        plain = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and any(_sides(path))}
        return _find_folder(folder, plain, split) if plain and not any(_sides(folder)) else _find_plain(folder)
    except OSError as error:
        raise DataError(f"{data_dir}: cannot be read: {error.strerror or error}") from error


def read_lume(data_dir: str | Path, split: str | None = None) -> LumeData:
    """Read the rows and documents of one split; see `find_lume`.

    Raises:
        DataError: A part is missing, or a row cannot be used.
    """
    files = find_lume(data_dir, split)
    forget, retain = (list(chain.from_iterable(map(read_examples, paths))) for paths in (files.forget, files.retain))
    member, nonmember = (
        read_examples(path, columns={"completion": "document"}) if path else None
        for path in (files.member, files.nonmember)
    )
    return LumeData(forget, retain, member, nonmember, files.split)


def _find_split(folder: Path, shards: list[re.Match[str]], split: str | None) -> LumeFiles:
    split = _split(folder, {shard["split"] for shard in shards}, split)

    def side(name: str) -> tuple[Path, ...]:
        found = [shard for shard in shards if (shard["side"], shard["split"]) == (name, split)]
        if not found:
            raise DataError(
                f"{folder}: has no data/{name}_{split}-*.parquet; in data/ there is {_files(folder / 'data')}"
            )
        expected = int(found[0]["count"] or len(found))
        if len(found) != expected:
            raise DataError(
                f"{folder}: data/{name}_{split}-*.parquet are {len(found)} of {expected} shards: add the rest"
            )
        return tuple(folder / "data" / shard[0] for shard in found)

    return LumeFiles(side("forget"), side("retain"), *_find_documents(_documents_of(folder, split)), split)


def _split(folder: Path, splits: Iterable[str], split: str | None) -> str:
    """The split that is meant.

    Raises:
        DataError: There is no such one, or there are several to choose from.
    """
    names = sorted(splits)
    if split is None and (len(names) == 1 or DEFAULT_SPLIT in names):
        split = names[0] if len(names) == 1 else DEFAULT_SPLIT
    if split is None or split not in names:
        problem = f"has no split {split}" if split else "has several splits"
        raise DataError(f"{folder}: {problem}: choose --split {' or '.join(names)}")
    return split


def _documents_of(folder: Path, split: str) -> Path:
    return folder / "mia_data" if split == "train" else folder / "mia_data" / split


def _sides(folder: Path) -> list[Path | None]:
    """The forget and the retain file of the plain layout."""
    names = (("forget.jsonl", "forget.parquet"), ("retain.jsonl", "retain.parquet"))
    return [next((folder / name for name in pair if (folder / name).is_file()), None) for pair in names]


def _find_folder(folder: Path, splits: Mapping[str, Path], split: str | None) -> LumeFiles:
    name = _split(folder, splits, split)
    found = _find_plain(splits[name])
    if found.member is None:
        member, nonmember = _find_documents(_documents_of(folder, name))
        found = replace(found, member=member, nonmember=nonmember)
    return replace(found, split=name)


def _find_plain(folder: Path) -> LumeFiles:
    forget, retain = _sides(folder)
    if forget is None or retain is None:
        missing = [f"{name}.jsonl" for name, path in (("forget", forget), ("retain", retain)) if path is None]
        if len(missing) == 2:
            missing.append("data/forget_<split>-*.parquet")
        raise DataError(f"{folder}: has no {', no '.join(missing)}; there is {_files(folder)}")
    member, nonmember = _find_documents(folder)
    if member is None:
        member, nonmember = _find_documents(folder / "mia_data")
    return LumeFiles((forget,), (retain,), member, nonmember)


def _find_documents(folder: Path) -> tuple[Path | None, Path | None]:
    """Member and non-member documents of a folder, or None for both."""
    paths = [folder / "member.jsonl", folder / "nonmember.jsonl"]
    missing = [path.name for path in paths if not path.is_file()]
    if len(missing) == 1:
        raise DataError(f"{folder}: has no {missing[0]}: membership needs member.jsonl and nonmember.jsonl, or neither")
    return (None, None) if missing else (paths[0], paths[1])


def _files(folder: Path) -> str:
    return first_few(sorted(path.name for path in folder.iterdir()), 8) or "nothing"
