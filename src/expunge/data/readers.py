"""From a file, a folder or a data set's name to rows: dicts of cells, each with the place where it was read."""

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from expunge.data.pieces import pieces
from expunge.errors import DataError
from expunge.utils.reading import UnreadableError, parse_json

Row = tuple[str, dict[str, Any]]
"""Where a row was read (`path:line` or `path, row 3`), and its cells by column."""

DATASET_NAME = re.compile(r"(?P<name>[\w-][\w.-]*(/[\w.-]+)?)(@(?P<config>[\w.-]+))?(:(?P<split>[\w.-]+))?")
IN_MEMORY = "@memory"
"""Ends the name of texts that were given in memory."""
BATCH_ROWS = 1024
MOST_ROWS = 1_000_000
"""Of one table: texts by the million are no request to forget, and a small file can claim any number of them."""
MOST_BYTES = 2**30
"""Of the rows of one table in memory."""
ROW_BYTES = 400
"""What a row takes in memory beside its cells, at least."""
HUB_TIMEOUT = 10.0
"""Seconds to wait for the Hub before a name counts as out of reach."""


class InMemory(str):
    """The name of texts that are in memory, which carries them: settings hold it where they hold a file's name.

    Attributes:
        rows: The texts. Nothing that is written holds them, whoever goes on from the run has to give them again.
    """

    __slots__ = ("rows",)
    rows: list[Row]

    def __new__(cls, name: str, rows: Iterable[dict[str, Any]]) -> "InMemory":
        self = super().__new__(cls, name + IN_MEMORY)
        self.rows = _number(rows, self)
        return self

    def __reduce__(self) -> tuple[type["InMemory"], tuple[str, list[dict[str, Any]]]]:
        return InMemory, (self.removesuffix(IN_MEMORY), [row for _, row in self.rows])

    def __deepcopy__(self, memo: dict[int, Any]) -> "InMemory":
        return self


def read_rows(source: str | Path) -> list[Row]:
    """Every row of a file, folder, `datasets` name or of what is in memory, in order.

    Raises:
        DataError: It is not there, in no known format, cannot be parsed, or has no rows.
    """
    try:
        rows = _read(source)
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror or type(error).__name__}") from error
    if not rows:
        raise DataError(f"{source}: is empty, there is not one row in it")
    return rows


def stem(source: str | Path) -> str:
    """The name of a file or data set, without folder, suffix, configuration and split."""
    return Path(source if Path(source).exists() else re.split("[@:]", str(source))[0]).stem


def _read(source: str | Path) -> list[Row]:
    if isinstance(source, InMemory):
        return source.rows
    path = Path(source)
    if not str(source).strip():
        raise DataError("the name of a data file is empty")
    if path.is_dir():
        return _read_saved(path, None)
    if path.exists():
        if not path.is_file():
            raise DataError(f"{source}: is not a file but a pipe or device: write its content to a file first")
        reader = READERS.get(path.suffix.lower())
        if not reader:
            raise DataError(f"{source}: unknown format '{path.suffix}': give a {', '.join(READERS)} file")
        return reader(path)
    if isinstance(source, str):
        if source.endswith(IN_MEMORY):
            name = source.removesuffix(IN_MEMORY)
            raise DataError(f"the {name} texts of this run were in memory: give them again ({name}=, or --{name} FILE)")
        folder, _, split = source.rpartition(":")
        if folder and Path(folder).is_dir():
            return _read_saved(Path(folder), split)
        if not looks_like_path(source):
            return _read_named(source)
    raise DataError(f"{source}: no such file: look at the path")


def _read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte-order mark."""
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, error.start - data.rfind(b"\n", 0, error.start)
        raise DataError(f"{path}:{line}: invalid UTF-8 at byte {byte} of the line: save the file as UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}:{line}: NUL character: save the file as UTF-8 text")
    return text


def _parsed(text: str, where: str, line: int = 1, hint: str = "") -> Any:
    try:
        return parse_json(text.encode(), line)
    except UnreadableError as error:
        raise DataError(f"{where}: {error}{hint}") from None


def _read_jsonl(path: Path, hint: str = "") -> list[Row]:
    rows = []
    # Not splitlines: U+2028 and its like may stand within a JSON string.
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}:{number}"
            rows.append((where, _object(_parsed(line, where, number, hint), where)))
    columns = rows[0][1] if len(rows) == 1 else {}
    return _number(_by_row(columns), str(path)) if _is_table(columns) else rows


def _is_table(columns: dict[str, Any]) -> bool:
    """Whether an object is a table as `to_json` of pandas writes it: column -> number of the row -> cell."""
    cells = [*columns.values()]
    tables = bool(cells) and all(isinstance(cell, dict) and cell and cell.keys() == cells[0].keys() for cell in cells)
    return tables and all(map(str.isdecimal, cells[0]))


def _by_row(columns: dict[str, Any]) -> list[dict[str, Any]]:
    return [{name: column[number] for name, column in columns.items()} for number in next(iter(columns.values()))]


def _read_json(path: Path) -> list[Row]:
    text = _read_text(path)
    if not text.lstrip().startswith("["):
        return _read_jsonl(path, " (expected is a list of objects, or one object a line)")
    content = _parsed(text, str(path))
    if all(isinstance(row, str) for row in content):
        content = [{"text": row} for row in content]
    return [(where, _object(row, where)) for where, row in _number(content, str(path))]


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: is not an object with named fields but {type(row).__name__}")
    return row


def _read_csv(path: Path) -> list[Row]:
    text = _read_text(path)
    if text.count("\n") == text.count("\r\n"):  # written, or made over, by Windows: its cells are as in a text file
        text = text.replace("\r\n", "\n")
    first = text.lstrip("\r\n").partition("\n")[0]
    separator = ";" if ";" in first and "," not in first else ","  # as spreadsheets write it where commas are decimal
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[Row] = []
    header: list[str] | None = None
    line = 1  # where the record begins that is read next
    limit = csv.field_size_limit(max(len(text), 1))
    try:
        for cells in reader:
            where, line = f"{path}:{line}", reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = cells
                if len(set(header)) < len(header):
                    raise DataError(f"{where}: two columns have the same name")
            elif len(cells) != len(header):
                raise DataError(f"{where}: {len(cells)} cells where the header has {len(header)}")
            else:
                rows.append((where, dict(zip(header, cells, strict=True))))
    except csv.Error:
        raise DataError(f"{path}:{line}: invalid CSV in the row that begins here") from None
    finally:
        csv.field_size_limit(limit)
    return rows


def _read_txt(path: Path) -> list[Row]:
    text = _read_text(path).replace("\r\n", "\n")  # as models have read it, wherever it was written
    return [(f"{path}:{line}", {"text": piece}) for line, piece in pieces(text)]


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            raise DataError(f"{path}: two columns have the same name")
        if file.metadata.num_rows > MOST_ROWS:
            raise _too_many(str(path))
        return _number(_batch_rows(file.iter_batches(BATCH_ROWS), str(path)), str(path))
    except (pa.ArrowException, UnicodeDecodeError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the disk's fault, not the file's
        reason = "a name in it is not UTF-8" if isinstance(error, UnicodeDecodeError) else "damaged or something else"
        raise DataError(f"{path}: invalid Parquet: {reason}") from None


def _batch_rows(batches: Iterable[Any], where: str) -> list[dict[str, Any]]:
    """The rows of batches of a table, as many as a set of texts may have.

    Raises:
        DataError: There are more rows, or more bytes in them.
    """
    rows: list[dict[str, Any]] = []
    size = 0
    for batch in batches:
        size += sum(map(_column_bytes, batch.columns)) + batch.num_rows * ROW_BYTES
        if len(rows) + batch.num_rows > MOST_ROWS or size > MOST_BYTES:
            raise _too_many(where)
        rows += _table_rows(batch, where, len(rows))
    return rows


def _column_bytes(column: Any) -> int:
    """What the cells of a column take once they are apart; in a dictionary, equal ones stand once."""
    import pyarrow as pa
    import pyarrow.compute as pc

    listed = pa.StructArray | pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray
    if isinstance(column, listed) and not isinstance(column, pa.MapArray):  # a map is a list, and cannot be flattened
        inside = column.flatten()  # the values of a list, the fields of a struct
        return max(int(column.nbytes), sum(map(_column_bytes, inside if isinstance(inside, list) else [inside])))
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    values = column.dictionary
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return int(values.nbytes // max(1, len(values)) * len(column))
    return int(pc.sum(pc.binary_length(values).take(column.indices)).as_py() or 0)


def _too_many(where: str) -> DataError:
    return DataError(f"{where}: more than {MOST_ROWS:,} rows or {MOST_BYTES:,} bytes of them: give a smaller part")


def _table_rows(table: Any, where: str, before: int = 0) -> list[dict[str, Any]]:
    """Rows of a part of a table that `before` rows precede."""
    try:
        rows: list[dict[str, Any]] = table.to_pylist()
    except (ValueError, OverflowError):  # as UnicodeDecodeError is, too
        for number in range(table.num_rows):
            try:
                table.slice(number, 1).to_pylist()
            except UnicodeDecodeError:
                raise DataError(f"{where}, row {before + number + 1}: invalid UTF-8") from None
            except (ValueError, OverflowError):
                raise DataError(f"{where}, row {before + number + 1}: a value that is out of range") from None
        raise
    return rows


def _number(rows: Iterable[Any], where: str) -> list[Row]:
    return [(f"{where}, row {number}", row) for number, row in enumerate(rows, 1)]


READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".txt": _read_txt,
}


def looks_like_path(source: str) -> bool:
    """Whether a name that is no file was meant as one, so that it is not looked up on the Hub."""
    path = Path(source.rpartition(":")[0] or source)
    suffixes = (*READERS, ".tsv", ".xlsx", ".gz", ".zip")
    return (
        path.suffix.lower() in suffixes
        or source.startswith(("/", ".", "~"))
        or source.count("/") > 1
        or "\\" in source
        or ("/" in source and path.parent.is_dir())
    )


def _read_saved(folder: Path, split: str | None) -> list[Row]:
    """Rows of a folder that `datasets.save_to_disk` wrote."""
    if not any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        raise DataError(f"{folder}: is a folder: give a file, or a folder written by datasets.save_to_disk")
    import datasets

    try:
        data = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise DataError(f"{folder}: not a folder that datasets can load ({type(error).__name__})") from None
    return dataset_rows(data, split, str(folder))


def _read_named(source: str) -> list[Row]:
    """Rows of a data set on the Hub, or of its copy in the local cache when `HF_HUB_OFFLINE` is set."""
    match = DATASET_NAME.fullmatch(source)
    if not match:
        raise DataError(f"{source}: no such file, and no name of a data set (name, name:split, name@config:split)")
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    name, config, split = match["name"], match["config"], match["split"]
    owner = name.rpartition("/")[0]
    if not owner:  # datasets would take `csv` or `text` for a loader of the files around here
        raise DataError(f"{source}: no such file; a data set's name needs its owner, as in owner/name")
    if Path(owner).is_dir():  # a slip in a path, which is nobody's business
        raise DataError(
            f"{source}: no such file, and {owner} is a folder here: a data set of that name is not looked up"
        )
    try:
        # One request, since load_dataset retries for half a minute where there is no network.
        name = HfApi().dataset_info(name, timeout=HUB_TIMEOUT).id
    except OfflineModeIsEnabled:
        pass
    except Exception as error:
        raise DataError(
            f"{source}: no such file, and the Hub has no such data set or is out of reach: "
            f"{type(error).__name__}; HF_HUB_OFFLINE=1 reads what was downloaded before"
        ) from None
    try:
        data = datasets.load_dataset(name, config)
    except Exception as error:
        raise DataError(f"{source}: no such file, and datasets cannot load it ({type(error).__name__})") from None
    return dataset_rows(data, split, source)


def dataset_rows(data: Any, split: str | None, source: str) -> list[Row]:
    """The rows of one split; `data` is a `Dataset` or a `DatasetDict`."""
    if isinstance(data, dict):
        if split is None and len(data) == 1:
            split = next(iter(data))
        if split not in data:
            wanted = f"has no split {split}" if split else "has several splits"
            raise DataError(f"{source}: {wanted}: give one of {', '.join(data)} after a colon")
        data = data[split]
    elif split:
        raise DataError(f"{source}: holds a single data set without splits: leave :{split} out")
    shown = getattr(data, "format", {})  # a stream has none
    if shown.get("type") == "custom":
        raise DataError(f"{source}: has a transform, which would be left out: apply it with map first")
    if shown and not shown["output_all_columns"]:
        data = data.select_columns(shown["columns"])
    try:
        batches = data.with_format("arrow").iter(BATCH_ROWS)
        return _number(_batch_rows(batches, source), source)
    except DataError:
        raise
    except Exception as error:  # a cast that does not fit quotes the cell
        raise DataError(f"{source}: its rows are not of the types that it declares ({type(error).__name__})") from None
