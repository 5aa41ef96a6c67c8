"""`expunge compare`: results files side by side, and where one of them is best beyond doubt."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Any

from expunge.errors import ConfigError, DataError, RunError
from expunge.evaluation.estimate import Estimate
from expunge.evaluation.pool import configuration_difference, pool_runs
from expunge.evaluation.results import of_other_keys, other_subject, read_results
from expunge.runs.record import read_manifest
from expunge.utils.files import check_replaceable, write_text
from expunge.utils.text import unique_names

MARKS = ("metric  ", "metric,direction,target,", "% \\usepackage{booktabs}")
"""Beginnings of comparisons as a table, as CSV and as LaTeX."""
ATTACKS = "membership/"
FIRST_STEMS = ("before", "after", "retrained")
"""The order of a run's results files; any others follow by name."""


@dataclass(frozen=True)
class Column:
    """One results file, or several runs of one configuration.

    Attributes:
        name: Its title.
        paths: The files.
        metrics: Metric -> what was measured.
    """

    name: str
    paths: tuple[Path, ...]
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True)
class Row:
    """One metric in all columns.

    Attributes:
        metric: Its name.
        cells: What each column has; None where it has nothing.
        best: Number of the column that is best, where its interval overlaps with no other's.
    """

    metric: str
    cells: tuple[Estimate | None, ...]
    best: int | None

    @property
    def direction(self) -> str | None:
        """Which way is better."""
        return next((cell.direction for cell in self.cells if cell), None)

    @property
    def target(self) -> float | None:
        """The value to come close to, where the columns agree on one."""
        targets = {cell.target for cell in self.cells if cell}
        return targets.pop() if len(targets) == 1 else None


@dataclass(frozen=True)
class Comparison:
    """Columns, their rows, and what a reader of the numbers should know."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def compare(
    arguments: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    pool: bool = False,
    paired: bool = False,
    patterns: Sequence[str] = (),
) -> Comparison:
    """Put results side by side.

    Args:
        arguments: Results files or run directories; several, joined by commas, are runs of one configuration and become
            one column (of run directories, one column for each name of results file).
        names: Titles of the columns; taken from the paths when None.
        pool: All arguments are runs of one configuration.
        paired: Show differences from the first column, row by row from the files of per-example values, with paired
            intervals; aggregates of several metrics have none.
        patterns: Metrics to show, as names with `*` and `?`; a pattern without these is looked for anywhere in the
            name. All metrics when empty.

    Raises:
        UserError: A file cannot be read or compared with the others, or names or patterns do not fit.
    """
    groups = [_pieces(argument) for argument in arguments]
    files = [pair for group in ([list(chain(*groups))] if pool else groups) for pair in _columns_of(group)]
    _refuse_repetition([path for _, paths in files for path in paths], arguments)
    titles = list(names) if names is not None else unique_names([parts for parts, _ in files])
    if len(titles) != len(files):
        found = ", ".join(unique_names([parts for parts, _ in files]))
        raise ConfigError(f"--names: {len(titles)} names for {len(files)} columns ({found})")
    if doubled := next((title for title in titles if titles.count(title) > 1), None):
        raise ConfigError(f"--names: {doubled} stands twice: give every column its own name")

    contents = [[(path, read_results(path)) for path in paths] for _, paths in files]
    first_path, first = contents[0][0]
    for path, results in (run for runs in contents for run in runs):
        if results["benchmark"] != first["benchmark"]:
            difference = configuration_difference(first, results)
            raise DataError(f"{first_path} and {path} are of different benchmarks: {difference}")
    columns = tuple(
        Column(title, tuple(paths), pool_runs(runs))
        for title, (_, paths), runs in zip(titles, files, contents, strict=True)
    )
    notes = [*_notes(columns, [runs[0][1] for runs in contents], paired=paired)]
    stale = [path for runs in contents for path, results in runs if _is_stale(path, results)]
    notes += [
        f"{path} is of another adapter than the run has now, or at another scale: evaluate again" for path in stale
    ]
    if paired:
        columns = _differences(columns, [runs[0][1] for runs in contents])
    rows = _rows(columns, patterns)
    if paired:
        notes.append("columns after the first are differences from it, row by row, with paired intervals")
    return Comparison(columns, rows, tuple(notes))


def write_comparison(path: str, text: str, comparison: Comparison, *, overwrite: bool = False) -> None:
    """Write a comparison, as `text`, to a file, readable by its owner alone.

    Raises:
        RunError: The file exists and `overwrite` is off, or it is one of those compared.
    """
    if any(Path(path).resolve() == source.resolve() for column in comparison.columns for source in column.paths):
        raise RunError(f"--output {path}: is one of the results to compare: give another name")
    if overwrite:
        check_replaceable(Path(path), MARKS, "a comparison")
    write_text(path, text, overwrite=overwrite)


def best_cell(cells: Sequence[Estimate | None]) -> int | None:
    """Number of the best cell, if its interval overlaps with no other's; None where that is not certain.

    For a metric with a target, the intervals of the distances from the target are compared.
    """
    known = [(i, cell) for i, cell in enumerate(cells) if cell is not None and cell.known]
    if len(known) < 2 or len({(cell.direction, cell.target) for _, cell in known}) > 1:
        return None
    spans = [(i, _badness(cell)) for i, cell in known]
    if any(span is None for _, span in spans):
        return None
    ordered = sorted(((span[1], span[0], i) for i, span in spans if span), key=lambda entry: entry[0])
    worst_of_best, _, best = ordered[0]
    return best if all(worst_of_best < low for _, low, _ in ordered[1:]) else None


def _badness(cell: Estimate) -> tuple[float, float] | None:
    """The interval of a number that is the better the smaller; None where there is none."""
    if not cell.bounded or cell.direction is None:
        return None
    if cell.direction == "higher":
        return -cell.high, -cell.low
    if cell.direction == "lower" or cell.target is None:
        return cell.low, cell.high
    ends = abs(cell.low - cell.target), abs(cell.high - cell.target)
    return 0.0 if cell.low <= cell.target <= cell.high else min(ends), max(ends)


def _pieces(argument: str) -> list[str]:
    """The files or folders that an argument names, with commas between them."""
    pieces = [argument] if Path(argument).exists() else [piece for piece in argument.split(",") if piece]
    if not pieces:
        raise ConfigError(f"{argument!r}: names no results file")
    return pieces


def _columns_of(pieces: Sequence[str]) -> Iterator[tuple[list[str], list[Path]]]:
    """(parts of the name, the last one first to be used; files) of each column that files or folders stand for."""
    found = [_results_in(Path(piece)) for piece in pieces]
    for piece, by_name in zip(pieces, found, strict=True):
        if by_name.keys() != found[0].keys():
            first, other = (", ".join(path.name for path in files.values()) for files in (found[0], by_name))
            raise DataError(
                f"{pieces[0]} and {piece} do not hold the same results ({first}; {other}): a folder stands for all "
                "results*.json in it, a file for itself"
            )
    for stem in found[0]:
        paths = [by_name[stem] for by_name in found]
        yield _joined_parts([_name_parts(path) for path in paths]), paths


def _results_in(path: Path) -> dict[str, Path]:
    """Name -> results file, of a run directory; of a file, that file under an empty name."""
    if not path.is_dir():
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        return {"": path}
    found = {file.stem.removeprefix("results").lstrip("_"): file for file in sorted(path.glob("results*.json"))}
    if not found:
        flags = f"--run {path}" if (path / "manifest.json").exists() else f"--model MODEL --output {path}/results.json"
        raise DataError(f"{path}: holds no results*.json: `expunge evaluate {flags}` writes one")
    order = [stem for stem in FIRST_STEMS if stem in found]
    return {stem: found[stem] for stem in (*order, *(stem for stem in found if stem not in order))}


def _name_parts(path: Path) -> list[str]:
    """What a file may be called: `runs`, `a`, `after` for runs/a/results_after.json; `runs`, `a` without `_after`."""
    folders = [part for part in path.absolute().parent.parts if part != path.anchor and part != "/"]
    stem = path.stem
    if stem == "results" and folders:
        return folders
    return [*folders, stem.removeprefix("results_") or stem]


def _is_stale(path: Path, results: Mapping[str, Any]) -> bool:
    """Whether a results file in a run is not of the adapter that the run has."""
    manifest = path.with_name("manifest.json")
    if path.stem not in ("results", "results_after") or not manifest.is_file():
        return False
    now, then = read_manifest(manifest).get("adapter_fingerprint"), (results.get("fingerprint") or {}).get("adapter")
    return bool(now and then and now != then)


def _joined_parts(many: Sequence[list[str]]) -> list[str]:
    """The parts of several files as one, level by level from the end; levels that differ are joined by `+`."""
    depth = min(len(parts) for parts in many)
    levels = [list(dict.fromkeys(parts[-depth + i] for parts in many)) for i in range(depth)]
    return ["+".join(level[:3]) + ("+..." if len(level) > 3 else "") for level in levels]


def _differences(columns: Sequence[Column], contents: Sequence[Mapping[str, Any]]) -> tuple[Column, ...]:
    """The first column, and of every other its differences from it."""
    from expunge.evaluation.paired import shown_difference
    from expunge.evaluation.values_file import read_values_file, values_path

    first, *others = columns
    if not others or any(len(column.paths) > 1 for column in columns):
        raise ConfigError(
            "--paired shows differences from the first of several results files: give two or more, unpooled"
        )
    tables = []
    for column, results in zip(columns, contents, strict=True):
        path = values_path(column.paths[0])
        if not path.is_file():
            raise DataError(
                f"{path}: no such file: --paired needs the values of every row, which `evaluate` writes there"
            )
        if any("data" in what for what in other_subject(contents[0], results)):
            raise DataError(f"{first.paths[0]} and {column.paths[0]} are not of the same data: nothing can be paired")
        tables.append(read_values_file(path))
    found = [first]
    for column, table in zip(others, tables[1:], strict=True):
        changes = {name: shown_difference(name, tables[0], table) for name in first.metrics}
        known = {name: change for name, change in changes.items() if change is not None}
        found.append(Column(f"{column.name} - {first.name}", column.paths, known))
    return tuple(found)


def _refuse_repetition(paths: Sequence[Path], arguments: Sequence[str]) -> None:
    seen: set[Path] = set()
    folders = {piece for argument in arguments for piece in (argument, *argument.split(",")) if Path(piece).is_dir()}
    for path in paths:
        if path.resolve() in seen:
            inside = [folder for folder in sorted(folders) if path.resolve().parent == Path(folder).resolve()]
            hint = f": the folder {inside[0]} stands for all results*.json in it" if inside else ""
            raise ConfigError(f"{path}: is given twice{hint}")
        seen.add(path.resolve())


def _rows(columns: Sequence[Column], patterns: Sequence[str]) -> tuple[Row, ...]:
    metrics = list(dict.fromkeys(name for column in columns for name in column.metrics))
    if len(columns) > 1 and not any(sum(name in column.metrics for column in columns) > 1 for name in metrics):
        raise DataError(f"{columns[0].paths[0]} and the other results have no metric in common: nothing to compare")
    shown = [name for name in metrics if not patterns or any(_matches(name, pattern) for pattern in patterns)]
    if not shown:
        some = ", ".join(metrics[:3]) or "none at all"
        raise ConfigError(f"--metrics {','.join(patterns)}: matches no metric of these results (they have {some}, ...)")
    rows = []
    for name in shown:
        cells = tuple(column.metrics.get(name) for column in columns)
        alike = not name.startswith(ATTACKS) or len({cell.n for cell in cells if cell}) == 1
        rows.append(Row(name, cells, best_cell(cells) if alike else None))
    return tuple(rows)


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*")


def _notes(columns: Sequence[Column], contents: Sequence[Mapping[str, Any]], *, paired: bool) -> Iterator[str]:
    for column, results in zip(columns[1:], contents[1:], strict=True):
        if difference := configuration_difference(contents[0], results):
            yield f"{columns[0].name} and {column.name} were not measured alike: {difference}"
        if of_other_keys(contents[0], results):
            yield (
                f"{columns[0].name} and {column.name} were made by different users: whether they are of the same data "
                "is not known"
            )
    attacks = {name for column in columns for name in column.metrics if name.startswith(ATTACKS)}
    counts = ({column.metrics[name].n for column in columns if name in column.metrics} for name in attacks)
    if not paired and any(len(sizes) > 1 for sizes in counts):
        yield (
            "membership is of other texts from column to column: a run is not reported on those that it was steered by "
            "(--paired takes the texts that both have)"
        )
    for column in columns:
        runs = max((cell.runs for cell in column.metrics.values()), default=1)
        if runs > 1:
            of = f"mean ± standard deviation of {runs} runs"
            yield f"{column.name}: {of}; the interval is the wider of two, of other seeds and of other rows"
        elif not any(cell.bounded for cell in column.metrics.values()):
            yield f"{column.name}: the file has no intervals, so nothing beside it is marked as best"
