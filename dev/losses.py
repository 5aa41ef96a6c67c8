"""`python -m dev.losses`: the table of all forget losses, from their registry; `--docs` writes docs/papers.md."""

import argparse
import dataclasses

from bench.report import DOCS, write_between
from expunge.losses import FORGET_LOSSES

PAGE = DOCS / "papers.md"
MARKER = "losses"


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m dev.losses", description=__doc__)
    parser.add_argument("--docs", action="store_true", help=f"also write it into docs/{PAGE.name}")
    args = parser.parse_args(argv)
    print(table())
    if args.docs:
        write_between(PAGE, MARKER, table())


def table() -> str:
    """A row for each of `FORGET_LOSSES`."""
    lines = [
        "| `--loss` | formula, with s_t = log p_ref(y_t) - log p(y_t) | `--loss-args` | source |",
        "|---|---|---|---|",
    ]
    for name, method in FORGET_LOSSES.items():
        args = ", ".join(f"`{own.name}={own.default}`" for own in dataclasses.fields(method))
        formula, source = (text.replace("|", "\\|") for text in (method.formula, method.source))
        lines.append(f"| `{name}` | {formula} | {args} | {source} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
