"""Results as plain text for a terminal, narrower than 100 columns."""

from collections.abc import Mapping
from typing import Any

ROWS = (
    ("forget", "regurgitation", "↓"),
    ("forget", "knowledge", "↓"),
    ("retain", "regurgitation", "↑"),
    ("retain", "knowledge", "↑"),
)


def loss_table(losses: Mapping[str, Mapping[str, float]]) -> str:
    """Mean losses before and after, one set of texts a line."""
    lines = ["nats per completion token    before     after"]
    lines += [f"  {name:<24}{pair['before']:>9.3f} {pair['after']:>9.3f}" for name, pair in losses.items()]
    return "\n".join(lines)


def semeval_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The official numbers of several models side by side.

    Args:
        results: Column title -> the content of a results file.
    """
    columns = list(results.values())
    lines = [" " * 38 + "".join(f"{title[:13]:>14}" for title in results)]
    for split, name, arrow in ROWS:
        for task in columns[0][split]:
            values = [column[split].get(task, {}).get(name) for column in columns]
            lines.append(_line(f"{split} {name} {task} {arrow}".replace("  ", " "), values))
    for name, label in (
        ("task_aggregate", "task aggregate ↑"),
        ("mia_auc", "membership AUC (0.5 is best)"),
        ("mia_score", "membership score ↑"),
        ("quiz", "general knowledge quiz ↑"),
        ("mmlu", "MMLU ↑"),
        ("final_score", "final score ↑"),
    ):
        values = [column.get(name) for column in columns]
        if any(value is not None for value in values):
            lines.append(_line(label, values))
    for side in ("member", "nonmember"):
        values = [column.get("mean_nll", {}).get(side) for column in columns]
        if any(value is not None for value in values):
            lines.append(_line(f"loss of {side} documents, nats/token", values))
    return "\n".join(lines)


def _line(label: str, values: list[float | None]) -> str:
    cells = "".join(f"{'-':>14}" if value is None or value != value else f"{value:>14.3f}" for value in values)
    return f"{label:<38}{cells}"
