"""`python -m experiments.subjects BEFORE AFTER RETRAINED`: all metrics of three models, and which can tell two of them apart.

BEFORE, AFTER and RETRAINED are results files of `expunge evaluate` on the same data: a model that has memorised the forget
set, the same after unlearning, and a retrained model that never met it; the values of every row stand beside each.
"Tells" is yes where the paired interval of the difference does not hold 0, and for numbers that have none (rates at a
threshold, aggregates) where the two intervals do not overlap. `--docs` writes the tables into docs/evaluation.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench.report import DOCS, show
from expunge.evaluation.compare import Row, compare
from expunge.evaluation.estimate import Estimate
from expunge.evaluation.results import read_results
from expunge.utils.text import show_number

NAMES = ("before", "unlearned", "retrained")
HEADINGS = (
    "Must tell the retrained model from the model before: how forget texts are known",
    "Need not: what must stay, and how the models speak",
)
MANNER = ("forget/repetition", "forget/fluency")
"""Of the forget prompts, but not of what is known."""
AGGREGATES = ("all/task_aggregate", "all/mia_score", "all/final_score", "all/forget_quality")
"""Of all rows, those to forget among them."""
TESTS = {"loss_ks_p": "KS test of losses of forget texts, p", "truth_ratio_ks_p": "KS test of truth ratios, p"}
LEVEL = 0.05
NO = "**no**"


def main(argv: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m experiments.subjects", description=__doc__)
    parser.add_argument(
        "results",
        nargs=3,
        help="results files: before and after with --reference RETRAINED, and of the retrained model",
    )
    parser.add_argument("--docs", action="store_true", help="also write the tables into docs/evaluation.md")
    args = parser.parse_args(argv)
    show(tables(args.results), DOCS / "evaluation.md", "subjects", docs=args.docs)


def tables(files: Sequence[str | Path]) -> str:
    """Both tables, without the rows of single tasks, and the sentence on what fails."""
    paths = [str(file) for file in files]
    shown = compare(paths, names=NAMES)
    # From the retrained model: how far the other two are from a model that never saw the forget set.
    paired = compare([paths[2], *paths[:2]], names=("retrained", *NAMES[:2]), paired=True)
    changes = {row.metric: row.cells[1:] for row in paired.rows}
    failing: list[str] = []
    parts: list[list[str]] = [[], []]
    for row in shown.rows:
        if row.metric.count("/") > 1 and not row.metric.endswith("/paraphrased"):
            continue  # of one task
        must = row.metric.startswith(("forget/", "membership/", *AGGREGATES)) and row.metric not in MANNER
        change = changes.get(row.metric, (None, None))
        told = [_tells(change[i], row.cells[i], row.cells[2]) for i in (0, 1)]
        counts = {cell.n for cell in row.cells if cell is not None and cell.n}
        cells = [_label(row), str(max(counts)) if counts else "", *map(_cell, row.cells), _cell(change[0]), *told]
        parts[0 if must else 1].append(f"| {' | '.join(cells)} |")
        if must and told[0] == NO:
            failing.append(f"`{row.metric}`")
    parts[0] += [
        *_tests(files),
        "",
        f"Fail to tell the retrained model from the model before: {', '.join(failing) or 'none'}.",
    ]
    columns = [
        "metric",
        "n",
        *NAMES,
        "before - retrained",
        "tells retrained from before",
        "tells retrained from unlearned",
    ]
    head = f"| {' | '.join(columns)} |\n|---|---:|---:|---:|---:|---:|---|---|"
    return "\n\n".join(
        "\n".join([f"### {title}", "", head, *lines]) for title, lines in zip(HEADINGS, parts, strict=True)
    )


def _tells(change: Estimate | None, one: Estimate | None, other: Estimate | None) -> str:
    if change is not None and change.bounded:
        return "yes" if change.low > 0 or change.high < 0 else NO
    if one is None or other is None or not (one.bounded and other.bounded):
        return ""
    return "yes" if one.low > other.high or one.high < other.low else NO


def _tests(files: Sequence[str | Path]) -> list[str]:
    """A row for each test of two models against the retrained model."""
    found = [(read_results(file).get("reference") or {}).get("indistinguishable", {}) for file in files]
    lines = []
    for name, title in TESTS.items():
        p = [results.get(name) for results in found[:2]]
        if p[0] is not None and p[1] is not None:
            told = ["yes" if value < LEVEL else NO for value in p]
            lines.append(f"| {title} | | {p[0]:.2g} | {p[1]:.2g} | | | {' | '.join(told)} |")
    return lines


def _label(row: Row) -> str:
    arrow = {"higher": " ↑", "lower": " ↓", "target": " →"}.get(row.direction or "", "")
    return row.metric + arrow + ("" if row.target is None else f" {row.target:g}")


def _cell(cell: Estimate | None) -> str:
    if cell is None or not cell.known:
        return ""
    return show_number(cell.value) + (f" [{show_number(cell.low)}, {show_number(cell.high)}]" if cell.bounded else "")


if __name__ == "__main__":
    main()
