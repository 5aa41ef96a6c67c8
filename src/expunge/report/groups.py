"""Runs side by side: which of them are repetitions of one configuration, and one table of scores over all."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from expunge.evaluation.estimate import NAN, Estimate
from expunge.evaluation.pool import configuration_difference
from expunge.report.run_data import RunData
from expunge.report.scores import FAMILIES, Score
from expunge.runs.record import method_of
from expunge.utils.text import first_few

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
class Cell(Estimate):
    """One score of one column: of a single model, or the mean of several, give or take one standard deviation.

    Attributes:
        each: Every model's value.
        starred: Whether it differs from the reference on the same rows; of several models, whether any does.
    """

    each: Sequence[float] = ()
    starred: bool = False


NOT_THERE = Cell(NAN, reason="not in its results")


@dataclass(frozen=True)
class Column:
    """One model, or the models of one group, in the tables.

    Attributes:
        title: Head of the column.
        kind: `before`, `after` or `retrained`.
        color: Index of the group's colour, from 1; 0 for before and reference.
        cells: Key -> cell.
        runs: Models behind it.
    """

    title: str
    kind: str
    color: int
    cells: dict[str, Cell] = field(default_factory=dict)
    runs: int = 1

    @property
    def mark(self) -> str:
        """What names its colour and shape on the page: `0` before, `r` retrained, `1` to `6` the groups."""
        return {"before": "0", "retrained": "r"}.get(self.kind) or str((self.color - 1) % 6 + 1)


@dataclass(frozen=True)
class Row:
    """One score over all columns.

    Attributes:
        score: Name, direction, target, family and source.
        cells: One of each column.
    """

    score: Score
    cells: list[Cell]

    @property
    def count(self) -> str:
        """Rows of the data behind it, from the fewest to the most where the columns have not the same; may be empty."""
        known = {cell.n for cell in self.cells if cell.n}
        return "–".join(map(str, sorted({min(known), max(known)}))) if known else ""


def group_runs(runs: Sequence[RunData]) -> list[Group]:
    """Put the runs of one configuration together that were scored in one way, in the order in which they were given,
    those without scores last. Where two of a configuration were not, a run's warnings say in what they differ; a second
    run of one adapter is left out, which a warning of the first says.
    """
    found: dict[str, list[RunData]] = {}
    for run in runs:
        found.setdefault(json.dumps(_identity(run), sort_keys=True, default=str), []).append(run)
    members = [part for alike in found.values() for part in _scored_alike(alike)]
    return [Group(_letter(i), _title(part, members), part) for i, part in enumerate(members)]


def read_columns(groups: Sequence[Group]) -> list[Column]:
    """The columns of all tables: untouched models, a column for each group, references."""
    before = _shared([run for group in groups for run in group.runs], "before")
    reference = _shared([run for group in groups for run in group.runs], "retrained")
    columns = [
        _column("before" if len(before) == 1 else name, "before", 0, [scores]) for name, scores in before.items()
    ]
    for color, group in enumerate(groups, 1):
        models = [run.scores["after"] for run in group.runs if "after" in run.scores]
        title = "after" if len(groups) == 1 else group.letter
        columns.append(_column(title, "after", color, models))
    return columns + [
        _column(name.partition(", ")[0] if len(reference) == 1 else name, "retrained", 0, [scores])
        for name, scores in reference.items()
    ]


def tabulate(columns: Sequence[Column], runs: Sequence[RunData]) -> dict[str, list[Row]]:
    """Family -> rows, families in the order of `FAMILIES`; how a key is read, the unlearned models' files say first."""
    seen: dict[str, Score] = {}
    for role in ("after", "before", "retrained"):
        for run in runs:
            for key, score in run.scores.get(role, {}).items():
                seen.setdefault(key, score)
    families: dict[str, list[Row]] = {name: [] for name in FAMILIES}
    for key, score in seen.items():
        cells = [column.cells.get(key, NOT_THERE) for column in columns]
        families.setdefault(score.family, []).append(Row(score, cells))
    return {name: rows for name, rows in families.items() if rows}


def differing_settings(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Setting -> its value in each group, for those that differ."""
    shown = [method_of(group.runs[0].settings) for group in groups]
    found = {
        name: [settings.get(name) for settings in shown]
        for name in dict.fromkeys(name for settings in shown for name in settings)
    }
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}


def _identity(run: RunData) -> dict[str, Any]:
    made_of = {name: run.manifest.get(name) for name in ("model_sha256", "origin_sha256", "data")}
    return method_of(run.settings) | {"model": None, **made_of}


def _scored_alike(runs: Sequence[RunData]) -> list[list[RunData]]:
    """The runs in parts, each of results that were made in one way; runs without any go with the first."""
    scored, rest = ([run for run in runs if ("after" in run.results) == wanted] for wanted in (True, False))
    parts: list[list[RunData]] = []
    for run in scored:
        told = [configuration_difference(part[0].results["after"], run.results["after"]) for part in parts]
        if None in told:
            part = parts[told.index(None)]
            if twin := next((other for other in part if _adapter(run) and _adapter(other) == _adapter(run)), None):
                twin.warnings.append(f"{run.name} is left out: it is of the same adapter.")
            else:
                part.append(run)
            continue
        if parts:
            run.warnings.append(f"It was not scored as {parts[0][0].name} was, so they are not pooled: {told[0]}.")
        parts.append([run])
    return [parts[0] + rest, *parts[1:]] if parts else [rest]


def _adapter(run: RunData) -> Any:
    return (run.results["after"].get("fingerprint") or {}).get("adapter")


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"A{index}"


def _title(runs: list[RunData], groups: list[list[RunData]]) -> str:
    """The settings that set a group apart; its runs' names where there are no other groups or no such settings."""
    names = [run.name for run in runs]
    shown = first_few(names, 2)
    if len(groups) == 1:
        return shown
    first = [method_of(group[0].settings) for group in groups]
    recipes = [settings.get("recipe") for settings in first]
    mine = method_of(runs[0].settings)
    if recipes.count(mine.get("recipe")) == 1:
        return f"recipe {mine.get('recipe')}"
    differing = [name for name in mine if any(settings.get(name) != mine[name] for settings in first)]
    parts = [f"{name} {short(mine[name])}" for name in differing]
    rest = f" and {len(parts) - TITLE_SETTINGS} more" if len(parts) > TITLE_SETTINGS else ""
    return ", ".join(parts[:TITLE_SETTINGS]) + rest if parts else shown


def short(value: Any) -> str:
    """A setting's value as the page shows it: of an absolute path the last part alone."""
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text.rstrip("/").rpartition("/")[2] if text.startswith("/") else text


def _shared(runs: Sequence[RunData], role: str) -> dict[str, dict[str, Score]]:
    """Name -> scores of the models that play a role, those with equal numbers once."""
    found: dict[str, dict[str, Score]] = {}
    for run in runs:
        scores = run.scores.get(role)
        if scores and not any(_values(scores) == _values(other) for other in found.values()):
            found[f"{run.title(role)}, {run.name}"] = scores
    return found


def _values(found: Mapping[str, Score]) -> dict[str, float | None]:
    return {key: score.ends()["value"] for key, score in found.items()}


def _column(title: str, kind: str, color: int, models: list[dict[str, Score]]) -> Column:
    keys = dict.fromkeys(key for model in models for key in model)
    cells = {key: _cell([model[key] for model in models if key in model]) for key in keys}
    return Column(title, kind, color, cells, len(models))


def _cell(found: list[Score]) -> Cell:
    known = [score for score in found if score.known]
    each, starred = [score.value for score in known], any(score.differs for score in known)
    first = (known or found)[0]
    if len(known) > 1:
        mean, std = statistics.fmean(each), statistics.stdev(each)
        rows = first.n if len({score.n for score in known}) == 1 else None
        return Cell(mean, mean - std, mean + std, rows, runs=len(each), std=std, each=each, starred=starred)
    reason = first.reason or ("" if known else "not measured")
    return Cell(first.value, first.low, first.high, first.n, reason, each=each, starred=starred)
