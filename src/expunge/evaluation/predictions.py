"""Predictions on disk: Expunge's own files, and the organisers' files as the organisers read them.

Expunge's own layout is a folder with `forget.jsonl` and `retain.jsonl` (a `Prediction` a line: id, task, kind,
expected_output, model_output) and, where the membership attack was run, `member.jsonl` and `nonmember.jsonl`
(id and nll, the mean negative log-likelihood in nats per token). Texts are kept exactly as written.
These files hold the texts to be forgotten; they are for the person who scores, and are written for nobody else
to read.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.data.readers import read_rows
from expunge.errors import DataError, RunError
from expunge.utils.files import write_text
from expunge.utils.reading import NUMBER, read_object
from expunge.utils.text import first_few

SPLITS = ("forget", "retain")
SIDES = ("member", "nonmember")
KINDS = {"sc": "regurgitation", "qa": "knowledge"}
"""Row kind -> what it measures, in the order of the organisers' terms."""


@dataclass(frozen=True)
class Prediction:
    """What a model said to one row.

    Attributes:
        id: Id of the row.
        task: Group of the row; a row without one counts in the overall means only.
        kind: `sc` (completion, scored by ROUGE-L recall), `qa` (question, scored by exact match) or empty (no
            score).
        expected_output: The reference.
        model_output: The generation.
    """

    id: str
    task: str
    kind: str
    expected_output: str
    model_output: str


@dataclass(frozen=True)
class Predictions:
    """What one model said and how well it knew the documents of the membership attack.

    Attributes:
        forget: Predictions on the forget split.
        retain: Predictions on the retain split.
        losses: `member` and `nonmember` -> mean negative log-likelihood (nats per token) of each document, where known.
    """

    forget: list[Prediction]
    retain: list[Prediction]
    losses: dict[str, list[float]] = field(default_factory=dict)


def write_predictions(folder: str | Path, predictions: Predictions, *, overwrite: bool = False) -> None:
    """Write the files of Expunge's own layout, each whole or not at all, readable by the owner alone.

    With `overwrite`, earlier losses go where there are no new ones: they are of other texts or of another model.

    Raises:
        RunError: A file exists and `overwrite` is off; nothing is written then.
    """
    files = {split: [vars(row) for row in getattr(predictions, split)] for split in SPLITS}
    for side, losses in predictions.losses.items():
        files[side] = [{"id": f"{side}-{i}", "nll": nll} for i, nll in enumerate(losses, 1)]
    paths = {name: Path(folder) / f"{name}.jsonl" for name in (*SPLITS, *SIDES)}
    there = [path for path in paths.values() if path.exists()]
    if there and not overwrite:
        raise RunError(f"{there[0]} exists already: give --overwrite or another folder")
    for name in paths.keys() - files:
        paths[name].unlink(missing_ok=True)
    for name, lines in files.items():
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        write_text(paths[name], text, overwrite=overwrite)


def read_any(folder: str | Path) -> Predictions:
    """Read a folder of predictions in either layout.

    Raises:
        DataError: There is no such folder, neither layout is in it, or a file of it cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder of predictions")
    if all((folder / f"{split}.jsonl").exists() for split in SPLITS):
        return read_predictions(folder)
    if all(list(folder.glob(f"{split}_*.csv")) for split in SPLITS):
        return read_organisers(folder)
    found = first_few(sorted(path.name for path in folder.iterdir()), 8) or "nothing"
    raise DataError(
        f"{folder}: no predictions here: looked for forget.jsonl and retain.jsonl, or forget_*.csv and "
        f"retain_*.csv; found {found}"
    )


def read_predictions(folder: str | Path) -> Predictions:
    """Read Expunge's own layout.

    Raises:
        DataError: A line is not what it should be (file and line are named), or a file is missing or empty.
    """
    folder = Path(folder)
    splits: dict[str, list[Prediction]] = {}
    for split in SPLITS:
        splits[split] = []
        for where, row in read_rows(folder / f"{split}.jsonl"):
            texts: dict[str, Any] = {
                name: row.get(name) for name in ("id", "task", "kind", "expected_output", "model_output")
            }
            for name, value in texts.items():
                if not isinstance(value, str):
                    raise DataError(f"{where}: field {name} is {_named(value)}, it must be a string")
            if texts["kind"] and texts["kind"] not in KINDS:
                raise DataError(f"{where}: kind {texts['kind']!r} is unknown, it must be one of sc, qa or empty")
            splits[split].append(Prediction(**texts))
    losses = {
        side: [_loss(row.get("nll"), where) for where, row in read_rows(path)]
        for side in SIDES
        if (path := folder / f"{side}.jsonl").exists()
    }
    return Predictions(splits["forget"], splits["retain"], losses)


def read_organisers(folder: str | Path) -> Predictions:
    """Read the organisers' layout as their script reads it, so that the scores are theirs.

    `forget_*.csv` and `retain_*.csv` (id, task, expected_output, model_output), `mia_results/member_*.csv` and
    `nonmember_*.csv` (nll). Their way through pandas changes texts:

    - an empty cell and the reader's missing-value words (nan, None, NA, null, ...) are scored as the text
      `nan`;
    - a column that looks numeric in every shard is read as numbers: leading zeros are lost, and beside an
      empty cell `900514344` is scored as `900514344.0`;
    - a bare carriage return in an unquoted cell ends the row, and its tail becomes a row of its own, with some
      number as its task and no score, so that the means of that task and the aggregate are NaN;
    - repeated rows, which a run on several processes leaves at the end of the last shard, are counted.

    Raises:
        DataError: Files or columns are missing, or a loss is not a finite number.
    """
    folder = Path(folder)
    splits = {}
    for split in SPLITS:
        columns = ("id", "task", "expected_output", "model_output")
        read = _read_shards(folder, split, columns)
        splits[split] = [
            # A row without a task falls out of the organisers' groups and stays in their overall means.
            Prediction(row_id, "" if task == "nan" else task, organisers_kind(row_id), reference, output)
            for row_id, task, reference, output in zip(
                *([str(cell) for cell in column] for column in read), strict=True
            )
        ]
    losses = {}
    for side in SIDES:
        where = folder / "mia_results" / f"{side}_*.csv"
        if list(where.parent.glob(where.name)):
            (values,) = _read_shards(where.parent, side, ("nll",))
            losses[side] = [_loss(value, f"{where}: row {row}") for row, value in enumerate(values, 1)]
    return Predictions(splits["forget"], splits["retain"], losses)


def organisers_kind(row_id: str) -> str:
    """Kind of a row by the organisers' rule: what its id ends in, apart from the last character.

    An id whose counter has two digits (`...qa12`) therefore has no kind and is never scored.
    """
    return next((kind for kind in KINDS if row_id[:-1].endswith(kind)), "")


def read_mmlu(value: str) -> float:
    """An MMLU accuracy given as a number in [0, 1] or as a JSON file with `average_acc`.

    Raises:
        DataError: Neither, or out of range.
    """
    try:
        accuracy = float(value)
    except ValueError:
        if not Path(value).is_file():
            raise DataError(f"--mmlu {value}: neither a number nor a file") from None
        try:
            accuracy = read_object(value, DataError, fields={"average_acc": NUMBER})["average_acc"]
        except DataError as error:
            raise DataError(f"--mmlu {error}") from None
    if not 0 <= accuracy <= 1:
        mend = f", {accuracy:g} % is {accuracy / 100:g}" if 1 < accuracy <= 100 else ""
        raise DataError(f"--mmlu {value}: {accuracy:g} is not an accuracy between 0 and 1{mend}")
    return float(accuracy)


def _read_shards(folder: Path, stem: str, columns: Sequence[str]) -> list[list[Any]]:
    """Columns of all shards `<stem>_*.csv`, one after the other, as pandas types them: the organisers' way."""
    import pandas

    shards = []
    for path in sorted(folder.glob(f"{stem}_*.csv")):
        try:
            shard = pandas.read_csv(path)
        except (ValueError, OSError) as error:  # pandas' parser errors and bad UTF-8 are ValueErrors
            raise DataError(f"{path}: not readable as CSV ({type(error).__name__})") from None
        missing = [name for name in columns if name not in shard.columns]
        if missing:
            raise DataError(f"{path}: column {missing[0]} is missing, found {', '.join(map(str, shard.columns))}")
        shards.append(shard[list(columns)])
    if not shards:
        raise DataError(f"{folder}: no {stem}_*.csv in it")
    rows = pandas.concat(shards)
    return [rows[name].tolist() for name in columns]


def _loss(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where}: nll is {_named(value)}, it must be a number")
    if not abs(value) <= sys.float_info.max:
        raise DataError(f"{where}: nll is not a finite number")
    return float(value)


def _named(value: Any) -> str:
    """What a value is, without its content."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number"}
    return "missing or null" if value is None else names.get(type(value), "a number")
