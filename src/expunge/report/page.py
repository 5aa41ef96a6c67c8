"""The page: everything put together and rendered, one HTML file that needs nothing else."""

import base64
import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, Template
from markupsafe import Markup, escape

from expunge.report import curves, details, figures
from expunge.report.drawing import Drawn, inline_svg, style
from expunge.report.forget_texts import Shown
from expunge.report.groups import Cell, Group, Row, differing_settings, read_columns, short, tabulate
from expunge.report.judge import verdict, worst
from expunge.report.scores import ARROWS, FAMILIES
from expunge.utils.text import MISSING, printable, show_number

PRIVATE = 10
"""Of fewer forget texts, exact losses give short secrets away to who has the model."""
OTHER_SCALE = 20
"""Scores share an axis only when the largest is at most so many times the smallest."""


class Drawings(NamedTuple):
    """The figures of a page."""

    panels: Sequence[curves.Panel] = ()
    distributions: Sequence[Drawn] = ()
    membership: Drawn | None = None
    tradeoff: Drawn | None = None
    points: Sequence[tuple[str, float, float]] = ()

    @property
    def all(self) -> list[Drawn]:
        """In the order of the page."""
        found = [figure for panel in self.panels for figure in panel.figures]
        return found + [figure for figure in (*self.distributions, self.membership, self.tradeoff) if figure]


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


def draw(groups: Sequence[Group]) -> Drawings:
    """All figures of a page; distributions are those of the first run."""
    first = groups[0].runs[0]
    alone = len(groups) == 1
    with style():
        panels = curves.over_steps(groups)
        panels += curves.over_scales(groups[0]) if alone and len(groups[0].runs) == 1 else []
        distributions = figures.distributions(first) if alone else []
        return Drawings(panels, distributions, figures.membership_curves(groups), *figures.tradeoff(groups))


def render(groups: Sequence[Group], drawings: Drawings, examples: Sequence[Shown] = ()) -> str:
    """The page on one or several runs, in their order; with examples it says in red that it is for internal use."""
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    with style():
        return _template().render(
            _context(groups, drawings) | {"examples": list(examples)},
            css=Markup(_asset("page.css")),
            script=Markup(script),
            script_hash=digest,
        )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("expunge.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {"number": show_number, "cell": cell_text, "short": short, "svg": _svg, "prose": prose}
    return environment.get_template("page.html")


def _context(groups: Sequence[Group], drawings: Drawings) -> dict[str, Any]:
    """Everything that the page shows, as the template reads it."""
    runs = [run for group in groups for run in group.runs]
    columns = read_columns(groups)
    families = tabulate(columns, runs)
    differing = differing_settings(groups) if len(groups) > 1 else {}
    single = runs[0] if len(runs) == 1 else None
    return {
        "groups": groups,
        "runs": runs,
        "single": single,
        "finished": details.moment(single.manifest.get("finished") or "not finished") if single else "",
        "title": " · ".join(dict.fromkeys(map(details.title, runs))),
        "model": ", ".join(dict.fromkeys(map(details.model_name, runs))),
        "texts": ", ".join(dict.fromkeys(map(details.texts, runs))),
        "few": any((run.manifest.get("rows", {}).get("forget") or PRIVATE) < PRIVATE for run in runs),
        "verdicts": [(group, worst([verdict(run) for run in group.runs])) for group in groups],
        "arrows": ARROWS,
        "columns": columns,
        "scales": [scale for name, rows in families.items() for scale in scales(name, rows, whole=True)],
        "task_scales": [scale for name, rows in families.items() for scale in scales(name, rows, whole=False)],
        "starred": any(cell.starred for rows in families.values() for row in rows for cell in row.cells),
        "reference": " or ".join(dict.fromkeys(run.reference for run in runs if "retrained" in run.scores)),
        "losses": details.losses(groups),
        "stopped": details.stops(runs),
        "drawings": drawings,
        "points": [[name, show_number(x), show_number(y)] for name, x, y in drawings.points],
        "least_forgotten": details.least_forgotten(single) if single else None,
        "cost": details.cost(runs),
        "settings": [(group, details.settings(group), *details.formula(group.runs[0])) for group in groups],
        "differing": (
            ["setting", *(group.letter for group in groups)],
            [[name, *(short(value) for value in values)] for name, values in differing.items()],
        ),
        "data": details.data(runs),
        "provenance": details.provenance(runs),
        "warnings": details.warnings(runs),
        "version": runs[0].manifest.get("versions", {}).get("expunge", ""),
    }


def scales(family: str, rows: Sequence[Row], *, whole: bool) -> list[Scale]:
    """The rows over all tasks, or those of single tasks, split into those from 0 to 1 and those on other scales."""
    chosen = [row for row in rows if bool(row.score.task) != whole]
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
    unit: float = 10 ** math.floor(math.log10(value))
    steps = (unit * step for step in (1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10))
    return next((step for step in steps if step >= value * (1 - 1e-9)), value)  # the smallest floats have none


def _extent(row: Row) -> list[float]:
    """All numbers of a row that its axis must hold."""
    found: list[float] = []
    for cell in row.cells:
        ends = (cell.low, cell.high) if cell.bounded and cell.runs == 1 else ()
        found += [*(cell.each or ([cell.value] if cell.known else ())), *ends]
    return found


def cell_text(cell: Cell, runs: int = 1) -> tuple[str, str]:
    """A cell's value, and its interval or spread (with the number of runs where it is not all), or why it has none."""
    if not cell.known:
        return MISSING, cell.reason
    if cell.runs > 1:
        fewer = f", {len(cell.each)} runs" if len(cell.each) < runs else ""
        return show_number(cell.value), f"± {_bound(cell.std, cell.value)}{fewer}"
    if not cell.bounded:
        return show_number(cell.value), cell.reason and f"no interval: {cell.reason}"
    return show_number(cell.value), f"{_bound(cell.low, cell.value)} to {_bound(cell.high, cell.value)}"


def _bound(end: float, value: float) -> str:
    """An end of an interval, with no more digits than the value before it."""
    return show_number(end if "e" in show_number(value) else round(end, 3))


def prose(text: str) -> Markup:
    """Text whose commands stand between back quotes; a flag outside of them is one, too, and never broken."""
    return Markup(
        re.sub(
            r"`([^`]*)`|(--[a-z][a-z-]*)",
            lambda match: f'<code class="flag">{match[2]}</code>' if match[2] else f"<code>{match[1]}</code>",
            str(escape(printable(text))),
        )
    )


def _svg(drawn: Drawn) -> Markup:
    return Markup(inline_svg(drawn))


def _asset(name: str) -> str:
    return (files("expunge.report") / "templates" / name).read_text(encoding="utf-8")


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
