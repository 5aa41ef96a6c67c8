"""The page's scores as a LaTeX table."""

from collections.abc import Mapping, Sequence

from expunge.report.comparison import Cell, Column, Row
from expunge.report.drawing import visible
from expunge.report.readings import FAMILIES
from expunge.utils import latex


def latex_table(columns: Sequence[Column], families: Mapping[str, Sequence[Row]]) -> str:
    """A `tabular`: a line per reading, families under a heading each.

    Several runs are mean ± standard deviation; intervals of a single model stand in brackets.
    """
    sections = [
        (FAMILIES.get(family, family.replace("_", " ")), [_line(row) for row in rows])
        for family, rows in families.items()
    ]
    return latex.tabular(["", *(visible(column.title) for column in columns)], sections)


def _line(row: Row) -> list[str]:
    arrow = latex.ARROWS.get(row.reading.direction or "", "")
    return [latex.escaped(visible(row.label)) + (f" {arrow}" if arrow else ""), *map(_cell, row.cells)]


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return latex.cell(None)
    return (
        latex.cell(cell.value, std=cell.std)
        if cell.std is not None
        else latex.cell(cell.value, low=cell.low, high=cell.high)
    )
