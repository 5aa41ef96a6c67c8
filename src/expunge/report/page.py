"""The page: everything put together and rendered, one HTML file that needs nothing else."""

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from expunge.report import facts, figures
from expunge.report.collect import RunData
from expunge.report.comparison import (
    Cell,
    Group,
    Row,
    all_readings,
    differing_settings,
    group_runs,
    read_columns,
    short,
    tabulate,
)
from expunge.report.drawing import inline_svg, style, visible
from expunge.report.readings import ARROWS, FAMILIES
from expunge.report.selection_figures import looks, strengths
from expunge.report.verdict import number_text, verdict, worst

ANSWERS = {"yes": "yes", "partly": "not wholly", "no": "no", "unknown": "open"}
OTHER_SCALE = 20
"""Readings share an axis only when the largest is at most so many times the smallest."""


@dataclass(frozen=True)
class Scale:
    """Rows that share one axis.

    Attributes:
        title: Heading.
        rows: The rows.
        low: Left end of the axis; None where the rows have no axis in common.
        high: Right end.
    """

    title: str
    rows: list[Row]
    low: float | None
    high: float | None

    def at(self, value: float) -> str:
        """Where a value stands on the axis, in percent of its width (a margin of 3 % is left on both sides)."""
        if self.low is None or self.high is None:
            return "0%"
        share = (value - self.low) / (self.high - self.low)
        return f"{3 + 94 * min(1.0, max(0.0, share)):.2f}%"

    @property
    def ticks(self) -> list[tuple[str, str]]:
        """Places and labels of the axis."""
        if self.low is None or self.high is None:
            return []
        middle = (self.low + self.high) / 2
        return [(self.at(value), f"{value:.3g}") for value in (self.low, middle, self.high)]


def render(runs: Sequence[RunData], examples: Sequence[Any] = ()) -> str:
    """The page on one or several runs.

    Args:
        runs: The runs, in the order of the page.
        examples: Examples to show, in which case the page says in red that it is for internal use.
    """
    with style():
        context = build(runs) | {"examples": list(examples)}
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=PackageLoader("expunge.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_visible
    )
    environment.filters |= {"number": number_text, "cell": cell_text, "short": short}
    return environment.get_template("page.html").render(
        context, css=Markup(_asset("page.css")), script=Markup(script), script_hash=digest
    )


def build(runs: Sequence[RunData]) -> dict[str, Any]:
    """Everything that the page shows, as the template reads it."""
    groups = group_runs(runs)
    columns = read_columns(groups)
    families = tabulate(columns, all_readings(groups))
    judged = [(group, worst([verdict(run) for run in group.runs])) for group in groups]
    traded = figures.tradeoff(groups)
    differing = differing_settings(groups) if len(groups) > 1 else {}
    single = groups[0].runs[0] if len(runs) == 1 else None
    spread = [_inline(drawn) for drawn in figures.distributions(runs[0])] if len(groups) == 1 else []
    curve = figures.membership_curves(groups)
    return {
        "groups": groups,
        "runs": list(runs),
        "single": single,
        "finished": facts.moment(single.manifest.get("finished") or "not finished") if single else "",
        "model": ", ".join(dict.fromkeys(facts.model_name(run) for run in runs)),
        "verdicts": judged,
        "answers": ANSWERS,
        "arrows": ARROWS,
        "columns": columns,
        "scales": [scale for name, rows in families.items() for scale in scales(name, rows, whole=True)],
        "task_scales": [scale for name, rows in families.items() for scale in scales(name, rows, whole=False)],
        "starred": any(cell and cell.differs for rows in families.values() for row in rows for cell in row.cells),
        "losses": facts.losses(groups),
        "stopped": facts.stops(groups),
        "courses": [_inline(drawn) for drawn in figures.courses(groups)],
        "course_table": _course_table(groups),
        "selection": [_inline(drawn) for drawn in (*looks(single), *strengths(single))] if single else [],
        "distributions": spread,
        "distributions_of": runs[0].name,
        "membership": _inline(curve) if curve else None,
        "least_forgotten": facts.least_forgotten(single) if single else None,
        "tradeoff": _inline(traded[0]) if traded else None,
        "tradeoff_lines": [[name, number_text(x), number_text(y)] for name, x, y in traded[1]] if traded else [],
        "tradeoff_scored": any("after" in run.results for run in runs),
        "cost": facts.cost(groups),
        "settings": [(group, facts.settings(group)) for group in groups],
        "differing": differing,
        "differing_table": (
            ["setting", *(group.letter for group in groups)],
            [[name, *(short(value) for value in values)] for name, values in differing.items()],
        ),
        "data": facts.data(groups),
        "provenance": facts.provenance(groups),
        "unmeasured": facts.unmeasured(groups),
        "warnings": facts.warnings(groups),
        "version": runs[0].manifest.get("versions", {}).get("expunge", ""),
    }


def scales(family: str, rows: Sequence[Row], *, whole: bool) -> list[Scale]:
    """The rows over all tasks, or those of single tasks, split into those from 0 to 1 and those on other scales."""
    chosen = [row for row in rows if bool(row.reading.task) != whole]
    title = FAMILIES.get(family, family.replace("_", " ").capitalize())
    unit = [row for row in chosen if all(0 <= value <= 1 for value in _extent(row))]
    rest = [row for row in chosen if row not in unit]
    found = [Scale(title, unit, 0.0, 1.0)] if unit else []
    if rest:
        tops = [max(abs(value) for value in _extent(row)) for row in rest]
        ends = [value for row in rest for value in _extent(row)]
        alike = 0 < max(tops) <= OTHER_SCALE * min(tops)
        low, high = (0.0 - _round_up(-min(0.0, *ends)), _round_up(max(0.0, *ends))) if alike else (None, None)
        found.append(Scale(f"{title}, on other scales" if unit else title, rest, low, high))
    return found


def _round_up(value: float) -> float:
    """The next number above that is easy to read, for the end of an axis."""
    if value <= 0:
        return 0.0
    unit = 10 ** math.floor(math.log10(value))
    return next(unit * step for step in (1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10) if unit * step >= value * (1 - 1e-9))


def _extent(row: Row) -> list[float]:
    """All numbers of a row that its axis must hold."""
    found: list[float] = []
    for cell in row.cells:
        if cell is not None:
            found += cell.each if cell.std is not None else [cell.value]
            found += [] if cell.std is not None or cell.low is None or cell.high is None else [cell.low, cell.high]
    return found


def cell_text(cell: Cell | None, runs: int = 1) -> tuple[str, str]:
    """A cell's value, and its interval or spread; with the number of runs where it is not that of its column."""
    if cell is None:
        return "–", ""
    if cell.std is not None:
        fewer = f", {len(cell.each)} runs" if len(cell.each) < runs else ""
        return number_text(cell.value), f"± {_bound(cell.std, cell)}{fewer}"
    if cell.low is None or cell.high is None:
        return number_text(cell.value), ""
    return number_text(cell.value), f"{_bound(cell.low, cell)} to {_bound(cell.high, cell)}"


def _bound(value: float, cell: Cell) -> str:
    """An end of an interval, with no more digits than the value before it."""
    return number_text(value if "e" in number_text(cell.value) else round(value, 3))


def _course_table(groups: Sequence[Group]) -> facts.Table:
    """The logged terms at the start, a quarter, the middle, three quarters and the end of every run."""
    names = figures.used_terms(groups)
    lines = []
    for group in groups:
        for run in group.runs:
            if run.steps:
                places = dict.fromkeys(round(share * (len(run.steps) - 1) / 4) for share in range(5))
                for place in places:
                    step = run.steps[place]
                    lines.append(
                        [run.name, f"{step['step']:,}", *(number_text(facts.number(step.get(n))) for n in names)]
                    )
    return ["run", "step", *(figures.TERMS[name][1] for name in names)], lines


def _inline(drawn: figures.Drawn) -> dict[str, Any]:
    svg = Markup(inline_svg(drawn.figure, drawn.name, drawn.title, _visible(drawn.says)))
    return {"name": drawn.name, "title": drawn.title, "says": drawn.says, "svg": svg}


def _asset(name: str) -> str:
    return (files("expunge.report") / "templates" / name).read_text(encoding="utf-8")


def _visible(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
