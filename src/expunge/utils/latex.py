"""LaTeX tables with the rules of booktabs."""

import math
from collections.abc import Iterable, Sequence

from expunge.utils.text import show_number

ARROWS = {"lower": r"$\downarrow$", "higher": r"$\uparrow$"}
_SIGNS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def escaped(text: str) -> str:
    """Text that LaTeX shows as it is; line ends become spaces."""
    return "".join(_SIGNS.get(sign, sign) for sign in " ".join(text.split()))


def cell(
    value: float, *, low: float = math.nan, high: float = math.nan, std: float = math.nan, bold: bool = False
) -> str:
    """A number, with its standard deviation and its interval in small brackets; NaN stands for what is not known."""
    if math.isnan(value):
        return "--"
    text = _number(value) if math.isnan(std) else rf"{_number(value)} $\pm$ {_number(std)}"
    text = rf"\textbf{{{text}}}" if bold else text
    if math.isnan(low) or math.isnan(high):
        return text
    return rf"{text} {{\scriptsize [{_number(low)}, {_number(high)}]}}"


def tabular(heads: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()) -> str:
    """A whole table: heads of its columns, and rows of cells.

    Heads are escaped here, cells are LaTeX already; notes become comments above the table, a line each.
    """
    lines = [r"% \usepackage{booktabs}", *(f"% {note}" for note in notes)]
    lines += [r"\begin{tabular}{l" + "r" * (len(heads) - 1) + "}", r"\toprule", _line(map(escaped, heads))]
    return "\n".join([*lines, r"\midrule", *map(_line, rows), r"\bottomrule", r"\end{tabular}", ""])


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _number(value: float) -> str:
    digits, _, exponent = show_number(value).partition("e")
    if exponent:
        return rf"${digits} \cdot 10^{{{int(exponent)}}}$"
    return f"${digits}$" if value < 0 else digits
