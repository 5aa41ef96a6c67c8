"""`python -m dev.metrics`: the table of all metrics, from the code's own list; `--docs` writes docs/evaluation.md."""

import math

from bench.report import DOCS, show_table
from expunge.evaluation.metrics import ATTACKS, METRICS, Metric

PAGE = DOCS / "evaluation.md"
MARKER = "metrics"
FAMILIES = {
    "memorization": "read, of texts given to the model",
    "text": "said, in answer to prompts",
    "membership": "membership, of whole documents",
    "utility": "what must stay",
}
"""What a family looks at, in the order of the table."""


def table() -> str:
    """A row for each of `METRICS`, family by family."""
    lines = ["| metric | definition | better | range | source |", "|---|---|---|---|---|"]
    for family, title in FAMILIES.items():
        lines.append(f"| **{title}** | | | | |")
        for metric in (*METRICS.values(), *ATTACKS.values()):
            if metric.family == family and metric.direction:
                cells = (metric.name, metric.definition, _better(metric), _range(metric), metric.source)
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _better(metric: Metric) -> str:
    better = f"near {metric.target:g}" if metric.target is not None else str(metric.direction)
    return better if metric.keep is None else f"{better}; on texts to keep {metric.keep}"


def _range(metric: Metric) -> str:
    low = "(-inf" if math.isinf(metric.low) else f"[{metric.low:g}"
    high = "inf)" if math.isinf(metric.high) else f"{metric.high:g}]"
    return f"{low}, {high}"


if __name__ == "__main__":
    show_table("dev.metrics", __doc__, PAGE, MARKER, table())
