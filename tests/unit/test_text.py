"""Numbers, sizes, times and LaTeX tables as they are written everywhere."""

import math

import pytest

from expunge.utils import latex
from expunge.utils.text import comma_list, did_you_mean, first_few, show_bytes, show_duration, show_number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.000"), (0.98765, "0.988"), (-0.5, "-0.500"), (12.345, "12.35"), (123.4, "123"), (4321.0, "4,321"),
        (1e6, "1.0e+6"), (2.3e-7, "2.3e-7"), (None, "–"), (math.nan, "–"), (math.inf, "inf"),
    ],
)  # fmt: skip
def test_numbers(value, text):
    assert show_number(value) == text


def test_sizes_and_times():
    assert [show_bytes(size) for size in (3 * 2**20, 2**30, None)] == ["3.0 MiB", "1.00 GiB", "–"]
    seconds = (61.54, 119.9, 600, 7500, None)
    assert [show_duration(duration) for duration in seconds] == ["61.5 s", "119.9 s", "10 min", "2 h 5 min", "–"]


def test_the_known_word_that_is_most_like_a_mistaken_one():
    known = ("epochs", "eval-every")
    assert did_you_mean("epoch", known) == ": did you mean epochs?"
    assert did_you_mean("epoch", known, " (--{})") == " (--epochs)"
    assert did_you_mean("epo", known, alike=0.9) == did_you_mean("xyz", known) == did_you_mean("x", ()) == ""


def test_latex_signs_in_names_are_written_out():
    assert latex.escaped("50% & more_\n\\input{x} $ #") == r"50\% \& more\_ \textbackslash{}input\{x\} \$ \#"
    assert latex.escaped("~ ^ <y>") == r"\textasciitilde{} \textasciicircum{} \textless{}y\textgreater{}"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"value": math.nan}, "--"),
        ({"value": 0.5}, "0.500"),
        ({"value": -3e-7}, r"$-3.0 \cdot 10^{-7}$"),
        ({"value": 0.5, "std": 0.1, "bold": True}, r"\textbf{0.500 $\pm$ 0.100}"),
        ({"value": 0.5, "low": -1.0, "high": 0.6}, r"0.500 {\scriptsize [$-1.000$, 0.600]}"),
    ],
)
def test_cells(options, text):
    assert latex.cell(**options) == text


def test_a_table_has_its_heads_and_rules():
    table = latex.tabular(["", "a & b"], [["x", "1"], ["y", "2"]], notes=["of two runs"])
    assert table.splitlines() == [
        r"% \usepackage{booktabs}", "% of two runs", r"\begin{tabular}{lr}", r"\toprule", r" & a \& b \\", r"\midrule",
        r"x & 1 \\", r"y & 2 \\", r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip


def test_a_list_on_the_command_line_may_have_spaces() -> None:
    assert comma_list(" a, b ,,c ") == ["a", "b", "c"]
    assert comma_list(None) == comma_list(" , ") == []


def test_of_many_names_the_first_are_told() -> None:
    assert first_few([1, 2, 3], 3) == "1, 2, 3"
    assert first_few(range(2000), 2) == "0, 1 and 1,998 more"
