"""A comparison as text: a table for terminals narrower than 100 columns, CSV, LaTeX."""

import csv
import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from expunge.evaluation.compare import Comparison, Row
from expunge.evaluation.estimate import NAN, Estimate
from expunge.utils import latex
from expunge.utils.text import printable, show_number

WIDTH = 99
"""Columns of a terminal that the table may use."""
LABEL_WIDTH = 30
"""Columns that a metric's name may use; more where the block leaves some free."""
TITLE_WIDTH = 24
GAP = 2
STAR = "*"
ENDINGS = {".csv": "csv", ".tex": "latex"}
ARROWS = {"lower": "↓", "higher": "↑"}
_flat = partial(printable, keep="")
"""Text from data as it stands in a cell: on one line."""


def as_table(comparison: Comparison) -> str:
    """For a terminal: value, interval and a star at what is best; columns that do not fit go into further blocks."""
    console = Console(width=WIDTH, color_system=None, force_terminal=False)
    whole = console.options.update(width=10 * WIDTH)
    blocks: list[list[int]] = [[]]
    for number in range(len(comparison.columns)):
        wider = _block(comparison, [*blocks[-1], number])
        if blocks[-1] and console.measure(wider, options=whole).maximum > WIDTH:
            blocks.append([])
        blocks[-1].append(number)
    with console.capture() as written:
        used = max(len(part) for row in comparison.rows for part in _broken(_label(row), LABEL_WIDTH).split("\n"))
        for block in blocks:
            spare = WIDTH - console.measure(_block(comparison, block), options=whole).maximum
            console.print(_block(comparison, block, min(used, LABEL_WIDTH) + max(0, spare)), "")
    return "\n".join(line.rstrip() for line in [*written.get().splitlines(), *_legend(comparison)]).rstrip()


def _block(comparison: Comparison, numbers: Sequence[int], label_width: int = LABEL_WIDTH) -> Table:
    """Some columns of a comparison, given by their numbers."""
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
    table.add_column("metric", max_width=label_width, overflow="fold", vertical="bottom")
    table.add_column("rows", justify="right", vertical="bottom")
    for number in numbers:
        widest = max(TITLE_WIDTH, *(len(_text_cell(row, number)) for row in comparison.rows))
        title = Text(_flat(comparison.columns[number].name))
        table.add_column(title, max_width=widest, overflow="fold", vertical="bottom")
    for row in comparison.rows:
        label = Text(_broken(_label(row), label_width))
        table.add_row(label, _rows_of(row), *(Text(_text_cell(row, number)) for number in numbers))
    return table


def as_csv(comparison: Comparison) -> str:
    """One line per metric and column, in full precision; empty where a number is not there. Text that spreadsheets
    would take for a formula has an apostrophe before it.

    Columns: metric, direction, target, name, value, low, high, n (rows), runs, std (over runs), best (1 or 0).
    """
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(["metric", "direction", "target", "name", "value", "low", "high", "n", "runs", "std", "best"])
    for row in comparison.rows:
        for number, (column, cell) in enumerate(zip(comparison.columns, row.cells, strict=True)):
            found = cell or Estimate(NAN, n=None, runs=0)
            numbers = [*map(_known, (found.value, found.low, found.high)), found.n, found.runs, _known(found.std)]
            head = [_cell(row.metric), row.direction, row.target, _cell(column.name)]
            lines.writerow([*head, *numbers, int(number == row.best)])
    return file.getvalue().rstrip("\n")


def _cell(text: str) -> str:
    """Text of a CSV cell that no spreadsheet takes for a formula, since results may come from others."""
    flat = _flat(text)
    return f"'{flat}" if flat.startswith(("=", "+", "-", "@")) else flat


def as_latex(comparison: Comparison) -> str:
    """A `tabular` with the rules of booktabs; what is best is bold."""
    rows = [
        [
            latex.escaped(_flat(row.metric)) + _direction(row, latex.ARROWS, lambda target: rf"$\to {target}$"),
            *(
                latex.cell(cell.value, low=cell.low, high=cell.high, std=cell.std, bold=place == row.best)
                if cell
                else latex.cell(NAN)
                for place, cell in enumerate(row.cells)
            ),
        ]
        for row in comparison.rows
    ]
    heads = ["metric", *(_flat(column.name) for column in comparison.columns)]
    return latex.tabular(heads, rows, map(_flat, comparison.notes)).rstrip()


FORMATS: dict[str, Callable[[Comparison], str]] = {"table": as_table, "csv": as_csv, "latex": as_latex}


def format_of(output: str | None) -> str:
    """The format that the ending of a file name asks for; a table by default."""
    return ENDINGS.get(Path(output or "").suffix.lower(), "table")


def _legend(comparison: Comparison) -> list[str]:
    """What the signs of the table mean, those that occur in it; then the notes."""
    cells = [cell for row in comparison.rows for cell in row.cells if cell]
    signs = []
    if any(cell.bounded for cell in cells):
        signs.append("[95 % interval]")
    if any(row.best is not None for row in comparison.rows):
        signs.append("* best: its interval overlaps with no other")
    for direction, sign in ARROWS.items():
        if any(cell.direction == direction for cell in cells):
            signs.append(f"{sign} {direction} is better")
    if any(cell.direction == "target" for cell in cells):
        signs.append("→ closer is better")
    texts = ["; ".join(signs), *(f"note: {_flat(note)}" for note in comparison.notes)]
    return [line for text in texts for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ")]


def _label(row: Row) -> str:
    return _flat(row.metric) + _direction(row, ARROWS, lambda target: f"→{target}")


def _broken(label: str, width: int) -> str:
    """A label over several lines where it is wider, broken behind a slash."""
    lines = [""]
    for part in re.split(r"(?<=/)", label):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _direction(row: Row, arrows: dict[str, str], towards: Callable[[str], str]) -> str:
    if row.direction == "target" and row.target is not None:
        return " " + towards(f"{row.target:g}")
    return f" {arrows[row.direction]}" if row.direction in arrows else ""


def _rows_of(row: Row) -> str:
    """The number of rows that a metric rests on, a range where the columns differ."""
    counts = sorted({cell.n for cell in row.cells if cell and cell.n is not None})
    return f"{counts[0]}-{counts[-1]}" if len(counts) > 1 else str(counts[0]) if counts else ""


def _text_cell(row: Row, column: int) -> str:
    cell = row.cells[column]
    if cell is None or not cell.known:
        return "-"
    text = show_number(cell.value) + ("" if _known(cell.std) is None else f" ±{show_number(cell.std)}")
    if cell.bounded:
        text += f" [{_bare(cell.low)} {_bare(cell.high)}]"
    return text + (STAR if column == row.best else "")


def _known(value: float) -> float | None:
    """The number; None where there is none."""
    return None if math.isnan(value) else value


def _bare(value: float) -> str:
    """A number without the zero before its point: three columns fit beside long names."""
    return re.sub(r"^(-?)0(?=\.)", r"\1", show_number(value))
