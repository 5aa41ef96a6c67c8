"""`python -m dev.losses`: the table of all forget losses, from their registry; `--docs` writes docs/papers.md."""

import dataclasses

from bench.report import DOCS, show_table
from expunge.losses import FORGET_LOSSES

PAGE = DOCS / "papers.md"
MARKER = "losses"


def table() -> str:
    """A row for each of `FORGET_LOSSES`."""
    lines = [
        "| `--loss` | formula, with s_t = log p_ref(y_t) - log p(y_t) | `--loss-args` | source |",
        "|---|---|---|---|",
    ]
    for name, method in FORGET_LOSSES.items():
        args = ", ".join(f"`{field.name}={field.default}`" for field in dataclasses.fields(method))
        formula, source = (text.replace("|", "\\|") for text in (method.formula, method.source))
        lines.append(f"| `{name}` | {formula} | {args} | {source} |")
    return "\n".join(lines)


if __name__ == "__main__":
    show_table("dev.losses", __doc__, PAGE, MARKER, table())
