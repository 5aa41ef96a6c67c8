"""The values of every row, as a Parquet file beside the results: ids and numbers, no texts and no tokens.

Whoever has the model can recover short secrets (a telephone number in a text that is known otherwise) from exact values
of single texts; the file says so in its metadata, under `note`.

Long format, a row per (set, metric, row): columns id, set, task, document (what the row is about, by an id), metric
(strings) and value (float64).
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from expunge.errors import DataError, RunError
from expunge.evaluation.measurement import Values
from expunge.utils.files import write_bytes

PRIVATE = (
    "Exact values of single texts: with the model at hand, short secrets can be recovered from them. Keep it private."
)
COLUMNS = {**dict.fromkeys(("id", "set", "task", "document", "metric"), "string"), "value": "double"}


def values_path(output: str | Path) -> Path:
    """The file that belongs to a results file."""
    return Path(output).with_suffix(".parquet")


def write_values(path: Path, table: Mapping[tuple[str, str], Values], *, overwrite: bool = False) -> None:
    """Write the file of (set, metric) -> values, whole or not at all, readable by the owner alone.

    Raises:
        RunError: It exists and `overwrite` is off.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for (set_name, metric), values in table.items():
        columns["id"] += values.ids
        columns["set"] += [set_name] * len(values.ids)
        columns["task"] += values.tasks
        columns["document"] += values.documents
        columns["metric"] += [metric] * len(values.ids)
        columns["value"] += values.values.tolist()
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=pa.schema(COLUMNS.items(), metadata={"note": PRIVATE})), buffer)
    write_bytes(path, buffer.getvalue(), overwrite=overwrite)


def check_values_file(path: Path, *, overwrite: bool = False) -> None:
    """Refuse, before any work, a path that holds something that must not be replaced.

    Raises:
        RunError: It exists and `overwrite` is off, or it is no file of ours.
    """
    if not path.exists():
        return
    if not overwrite:
        raise RunError(f"--output: {path} beside it exists already: give another name or --overwrite")
    try:
        read_values_file(path)
    except DataError:
        raise RunError(f"--output: {path} beside it would be replaced, and is none of ours") from None


def read_values_file(path: str | Path) -> dict[tuple[str, str], Values]:
    """(set, metric) -> values.

    Raises:
        DataError: It cannot be read, or has other columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
        table.validate(full=True)  # text that is no UTF-8, too
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({type(error).__name__})") from None
    if dict(zip(table.column_names, map(str, table.schema.types), strict=True)) != COLUMNS:
        raise DataError(f"{path}: not a file of values per row: its columns are not {', '.join(COLUMNS)}")
    if any(table[name].null_count for name in COLUMNS) or not np.isfinite(table["value"].to_numpy()).all():
        raise DataError(f"{path}: damaged: it has empty cells or values that are no finite number")
    columns = {name: table[name].to_pylist() for name in COLUMNS}
    places: dict[tuple[str, str], list[int]] = {}
    for i, key in enumerate(zip(columns["set"], columns["metric"], strict=True)):
        places.setdefault(key, []).append(i)

    def of(name: str, rows: list[int]) -> tuple[Any, ...]:
        return tuple(columns[name][i] for i in rows)

    return {
        key: Values(of("id", rows), of("task", rows), of("document", rows), np.array(of("value", rows)))
        for key, rows in places.items()
    }
