"""The page's scores as a LaTeX table with the rules of booktabs."""

from collections.abc import Mapping, Sequence

from expunge.evaluation.compare_formats import LATEX_ARROWS, LATEX_SIGNS
from expunge.report.comparison import Cell, Column, Row
from expunge.report.drawing import visible
from expunge.report.readings import FAMILIES
from expunge.report.verdict import number_text


def latex_table(columns: Sequence[Column], families: Mapping[str, Sequence[Row]]) -> str:
    """A `tabular`: a line per reading, families under a heading each.

    Several runs are mean ± standard deviation; intervals of a single model stand in brackets.
    """
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{tabular}{l" + "r" * len(columns) + "}",
        r"\toprule",
        " & ".join(["", *(_text(column.title) for column in columns)]) + r" \\",
    ]
    for family, rows in families.items():
        heading = _text(FAMILIES.get(family, family.replace("_", " ")))
        lines += [r"\midrule", rf"\multicolumn{{{len(columns) + 1}}}{{l}}{{\emph{{{heading}}}}} \\"]
        for row in rows:
            arrow = LATEX_ARROWS.get(row.reading.direction or "", "")
            label = _text(row.label) + (f" {arrow}" if arrow else "")
            lines.append(" & ".join([label, *map(_cell, row.cells)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _text(text: str) -> str:
    return "".join(LATEX_SIGNS.get(sign, sign) for sign in " ".join(visible(text).split()))


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "--"
    value = _number(cell.value)
    if cell.std is not None:
        return rf"{value} $\pm$ {_number(cell.std)}"
    if cell.low is None or cell.high is None:
        return value
    return rf"{value} {{\scriptsize [{_number(cell.low)}, {_number(cell.high)}]}}"


def _number(value: float) -> str:
    mantissa, _, exponent = number_text(value).partition("e")
    if exponent:
        return rf"${mantissa}\times10^{{{int(exponent)}}}$"
    return f"${mantissa}$" if value < 0 else mantissa
