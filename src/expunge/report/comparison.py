"""Runs side by side: which of them are repetitions of one configuration, and one table of readings over all."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from expunge.report.collect import RunData
from expunge.report.readings import FAMILIES, Reading, label, readings, with_reference

NOT_A_METHOD = {
    "seed",
    "output",
    "overwrite",
    "resume",
    "save_every",
    "report_to",
    "dry_run",
    "device",
    "from_manifest",
}
"""Settings that do not make another configuration."""
DATA_FILES = {"forget", "retain", "holdout", "instead", "data"}
"""Settings that name files of the data: their hashes stand for them, and the page leaves their names out."""
TITLE_SETTINGS = 3


@dataclass(frozen=True)
class Group:
    """Runs of one configuration.

    Attributes:
        letter: `A`, `B`, ...
        title: What sets it apart from the other groups.
        runs: Its runs; they differ in the seed alone.
    """

    letter: str
    title: str
    runs: list[RunData]


@dataclass(frozen=True)
class Cell:
    """One reading of one column: of a single model, or the mean of several.

    Attributes:
        value: The number or the mean.
        low: Lower end of the 95 % interval of a single model; of several, the mean less one standard deviation.
        high: The upper end likewise.
        n: Rows behind it.
        std: Standard deviation over models (n - 1); None for one.
        each: Every model's value.
        differs: Whether it differs from the reference on the same rows; of several models, whether any does.
    """

    value: float
    low: float | None
    high: float | None
    n: int | None
    std: float | None
    each: list[float]
    differs: bool = False


@dataclass(frozen=True)
class Column:
    """One model, or the models of one group, in the tables.

    Attributes:
        title: Head of the column.
        kind: `before`, `after` or `reference`.
        color: Index of the group's colour, from 1; 0 for before and reference.
        cells: Key -> cell.
        runs: Models behind it.
    """

    title: str
    kind: str
    color: int
    cells: dict[str, Cell] = field(default_factory=dict)
    runs: int = 1


@dataclass(frozen=True)
class Row:
    """One reading over all columns.

    Attributes:
        label: What the page calls it.
        reading: Direction, target, family and source.
        cells: One of each column; None where it was not measured.
    """

    label: str
    reading: Reading
    cells: list[Cell | None]

    @property
    def count(self) -> str:
        """Rows of the data behind it, from the fewest to the most where the columns have not the same; may be empty."""
        known = {cell.n for cell in self.cells if cell and cell.n}
        return "–".join(map(str, sorted({min(known), max(known)}))) if known else ""


def group_runs(runs: Sequence[RunData]) -> list[Group]:
    """Put the runs of one configuration together, in the order in which they were given."""
    found: dict[str, list[RunData]] = {}
    for run in runs:
        found.setdefault(json.dumps(_identity(run), sort_keys=True, default=str), []).append(run)
    members = list(found.values())
    return [Group(_letter(i), _title(own, members), own) for i, own in enumerate(members)]


def read_columns(groups: Sequence[Group]) -> list[Column]:
    """The columns of all tables: untouched models, a column for each group, references."""
    before = _shared([run for group in groups for run in group.runs], "before")
    reference = _shared([run for group in groups for run in group.runs], "reference")
    columns = [_column("before" if len(before) == 1 else name, "before", 0, [own]) for name, own in before.items()]
    for color, group in enumerate(groups, 1):
        own = [readings(run.results["after"]) for run in group.runs if "after" in run.results]
        title = "after" if len(groups) == 1 else group.letter
        columns.append(_column(title, "after", color, own))
    return columns + [
        _column("reference" if len(reference) == 1 else name, "reference", 0, [own]) for name, own in reference.items()
    ]


def tabulate(columns: Sequence[Column], seen: Mapping[str, Reading]) -> dict[str, list[Row]]:
    """Family -> rows, families in the order of `FAMILIES`; keys without a number in any column are left out."""
    families: dict[str, list[Row]] = {name: [] for name in FAMILIES}
    for key, reading in seen.items():
        cells = [column.cells.get(key) for column in columns]
        if any(cells):
            families.setdefault(reading.family, []).append(Row(label(reading), reading, cells))
    return {name: rows for name, rows in families.items() if rows}


def all_readings(groups: Sequence[Group]) -> dict[str, Reading]:
    """Every key that any file holds, with how to read it: what the unlearned models' files say counts first."""
    found: dict[str, Reading] = {}
    for role in ("after", "before", "reference"):
        for group in groups:
            for run in group.runs:
                for key, reading in of_run(run).get(role, {}).items():
                    found.setdefault(key, reading)
    return found


def of_run(run: RunData) -> dict[str, dict[str, Reading]]:
    """Role -> readings of one run, with the reference that its files name."""
    found = {role: readings(results) for role, results in run.results.items()}
    reference = with_reference(found.get("after", {}), found.get("reference", {}))
    return {**found, "reference": reference} if reference else found


def differing_settings(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Setting -> its value in each group, for those that differ."""
    names = dict.fromkeys(name for group in groups for name in group.runs[0].settings if name not in NOT_A_METHOD)
    found = {name: [group.runs[0].settings.get(name) for group in groups] for name in names}
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}


def _identity(run: RunData) -> dict[str, Any]:
    settings = {name: value for name, value in run.settings.items() if name not in NOT_A_METHOD | DATA_FILES}
    return {**settings, "model": None, "weights": run.manifest.get("model_sha256"), "data": run.manifest.get("data")}


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"A{index}"


def _title(runs: list[RunData], groups: list[list[RunData]]) -> str:
    """The settings that set a group apart; its runs' names where there are no other groups or no such settings."""
    names = [run.name for run in runs]
    shown = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
    if len(groups) == 1:
        return shown
    first = [own[0].settings for own in groups]
    recipes = [settings.get("recipe") for settings in first]
    mine = runs[0].settings
    if recipes.count(mine.get("recipe")) == 1:
        return f"recipe {mine.get('recipe')}"
    differing = [
        name
        for name in mine
        if name not in NOT_A_METHOD | DATA_FILES and any(settings.get(name) != mine[name] for settings in first)
    ]
    parts = [f"{name} {short(mine[name])}" for name in differing]
    rest = f" and {len(parts) - TITLE_SETTINGS} more" if len(parts) > TITLE_SETTINGS else ""
    return ", ".join(parts[:TITLE_SETTINGS]) + rest if parts else shown


def short(value: Any) -> str:
    """A setting's value as the page shows it: of an absolute path the last part alone."""
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text.rstrip("/").rpartition("/")[2] if text.startswith("/") else text


def _shared(runs: Sequence[RunData], role: str) -> dict[str, dict[str, Reading]]:
    """Name -> readings of the models that play a role, those with equal numbers once."""
    found: dict[str, dict[str, Reading]] = {}
    for run in runs:
        own = of_run(run).get(role)
        if own and not any(_values(own) == _values(other) for other in found.values()):
            found[f"{role}, {run.name}"] = own
    return found


def _values(found: Mapping[str, Reading]) -> dict[str, float | None]:
    return {key: reading.value for key, reading in found.items()}


def _column(title: str, kind: str, color: int, models: list[dict[str, Reading]]) -> Column:
    cells = {}
    for key in dict.fromkeys(key for own in models for key in own):
        found = [own[key] for own in models if key in own and own[key].value is not None]
        if found:
            cells[key] = _cell(found)
    return Column(title, kind, color, cells, len(models))


def _cell(found: list[Reading]) -> Cell:
    values = [reading.value for reading in found if reading.value is not None]
    first = found[0]
    if len(values) == 1:
        return Cell(values[0], first.low, first.high, first.n, None, values, first.differs)
    mean, std = statistics.fmean(values), statistics.stdev(values)
    return Cell(mean, mean - std, mean + std, first.n, std, values, any(reading.differs for reading in found))
