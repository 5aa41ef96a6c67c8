"""A comparison as text: a table for terminals narrower than 100 columns, CSV, LaTeX."""

import csv
import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.cells import cell_len

from expunge.evaluation.compare import Comparison, Row
from expunge.evaluation.estimate import NAN, Estimate
from expunge.utils import latex
from expunge.utils.text import printable, show_number

WIDTH = 99
"""Columns of a terminal that the table may use."""
LABEL_WIDTH = 30
TITLE_WIDTH = 24
GAP = 2
STAR = "*"
ENDINGS = {".csv": "csv", ".tex": "latex"}
ARROWS = {"lower": "↓", "higher": "↑"}
_flat = partial(printable, keep="")
"""Text from data as it stands in a cell: on one line."""


def as_table(comparison: Comparison) -> str:
    """For a terminal: value, interval and a star at what is best; columns that do not fit go into further blocks."""
    labels = ["metric", *(_label(row) for row in comparison.rows)]
    rows_of = ["rows", *(_rows_of(row) for row in comparison.rows)]
    columns: list[tuple[list[str], list[str]]] = []
    for number, column in enumerate(comparison.columns):
        cells = [_text_cell(row, number) for row in comparison.rows]
        title = _wrapped(_flat(column.name), max(TITLE_WIDTH, *(cell_len(cell) for cell in cells)))
        columns.append((title, cells))
    label_width = min(LABEL_WIDTH, max(map(cell_len, labels)))
    rows_width = max(map(len, rows_of))
    blocks: list[list[tuple[list[str], list[str]]]] = []
    room = 0
    for titled in columns:
        width = GAP + _width(titled)
        if not blocks or width > room:
            blocks.append([])
            room = WIDTH - label_width - GAP - rows_width
        blocks[-1].append(titled)
        room -= width
    parts = [_block(labels, rows_of, block, label_width, rows_width) for block in blocks]
    return "\n\n".join("\n".join(lines) for lines in [*parts, _legend(comparison)]).rstrip()


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
    return latex.tabular(heads, [("", rows)], map(_flat, comparison.notes)).rstrip()


FORMATS: dict[str, Callable[[Comparison], str]] = {"table": as_table, "csv": as_csv, "latex": as_latex}


def format_of(output: str | None) -> str:
    """The format that the ending of a file name asks for; a table by default."""
    return ENDINGS.get(Path(output or "").suffix.lower(), "table")


def _block(
    labels: Sequence[str], rows_of: Sequence[str], block: Sequence[tuple[list[str], list[str]]], wide: int, narrow: int
) -> list[str]:
    """The lines of one block: the titles, then a line per metric."""
    height = max(len(title) for title, _ in block)
    lines = []
    for level in range(height):
        last = level == height - 1
        above = [[""] * (height - len(title)) + title for title, _ in block]
        cells = [_left(title[level], _width(column) + GAP) for title, column in zip(above, block, strict=True)]
        lines.append(_line(labels[0] if last else "", rows_of[0] if last else "", cells, wide, narrow))
    for index, (label, rows) in enumerate(zip(labels[1:], rows_of[1:], strict=True)):
        cells = [_left(column[1][index], _width(column) + GAP) for column in block]
        if cell_len(label) > wide:
            lines += _wrapped(label, WIDTH)
            label = ""
        lines.append(_line(label, rows, cells, wide, narrow))
    return lines


def _line(label: str, rows: str, cells: Sequence[str], wide: int, narrow: int) -> str:
    return (_left(label, wide + GAP) + rows.rjust(narrow) + " " * GAP + "".join(cells)).rstrip()


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
    """A number without the zero before its point and, if it is tiny or huge, with one digit."""
    text = show_number(value)
    return (
        f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e+")
        if "e" in text
        else re.sub(r"^(-?)0(?=\.)", r"\1", text)
    )


def _width(column: tuple[list[str], list[str]]) -> int:
    """Of a column; a star may stand in the gap to the next."""
    title, cells = column
    return max(cell_len(text.removesuffix(STAR)) for text in (*title, *cells))


def _wrapped(title: str, width: int) -> list[str]:
    """A title in pieces that fit."""
    lines = [""]
    for char in title:
        if cell_len(lines[-1] + char) > width:
            lines.append("")
        lines[-1] += char
    return lines


def _left(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))
