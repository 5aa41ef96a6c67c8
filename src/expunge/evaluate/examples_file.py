"""The values of every row, as a Parquet file beside the results: ids and numbers, no texts and no tokens.

Long format, a row per (set, metric, row): columns id, set, task, metric (strings) and value (float64).
"""

import io
from collections.abc import Mapping
from pathlib import Path

from expunge.errors import DataError, RunError
from expunge.evaluate.benchmarks.measurement import Values
from expunge.run_dir import write_bytes

COLUMNS = ("id", "set", "task", "metric", "value")


def examples_path(output: str | Path) -> Path:
    """The file that belongs to a results file."""
    return Path(output).with_suffix(".parquet")


def write_examples(path: Path, table: Mapping[tuple[str, str], Values], *, overwrite: bool = False) -> None:
    """Write the file, whole or not at all, readable by the owner alone.

    Args:
        path: The file.
        table: (set, metric) -> values.
        overwrite: Replace a file that is there.

    Raises:
        RunError: It exists and `overwrite` is off.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list] = {name: [] for name in COLUMNS}
    for (set_name, metric), values in table.items():
        columns["id"] += values.ids
        columns["set"] += [set_name] * len(values.ids)
        columns["task"] += values.tasks
        columns["metric"] += [metric] * len(values.ids)
        columns["value"] += values.values.tolist()
    types = {name: pa.float64() if name == "value" else pa.string() for name in COLUMNS}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=pa.schema(types.items())), buffer)
    write_bytes(path, buffer.getvalue(), overwrite=overwrite)


def check_examples_file(path: Path, *, overwrite: bool = False) -> None:
    """Refuse, before any work, a path that holds something that must not be replaced.

    Raises:
        RunError: It exists and `overwrite` is off, or it is no file of ours.
    """
    if not path.exists():
        return
    if not overwrite:
        raise RunError(f"--output: {path} beside it exists already: give another name or --overwrite")
    try:
        read_examples_file(path)
    except DataError:
        raise RunError(f"--output: {path} beside it would be replaced, and is none of ours") from None


def read_examples_file(path: str | Path) -> dict[tuple[str, str], dict[str, float]]:
    """(set, metric) -> id -> value.

    Raises:
        DataError: It cannot be read, or has other columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({type(error).__name__})") from None
    if tuple(table.column_names) != COLUMNS:
        raise DataError(f"{path}: not a file of values per row: its columns are not {', '.join(COLUMNS)}")
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row_id, set_name, _, metric, value in zip(*(table[name].to_pylist() for name in COLUMNS), strict=True):
        found.setdefault((set_name, metric), {})[row_id] = value
    return found
