"""`python -m bench.parity`: every metric, its definition and source, and its largest difference from published numbers.

Exits with 1 when a difference is beyond its tolerance.
"""

import argparse
import sys
from collections import defaultdict

from bench.parity import all_comparisons
from bench.parity.golden import Comparison, Golden
from expunge.evaluate.metrics import METRICS


def main(argv: list[str] | None = None) -> None:
    """Compare and print."""
    argparse.ArgumentParser(prog="python -m bench.parity", description=__doc__).parse_args(argv)
    golden = Golden()
    if not golden.root.is_dir():
        raise SystemExit("no golden numbers in ../shared/golden beside the project")
    found = list(all_comparisons(golden))
    print(table(found))
    failed = [(origin, comparison) for origin, comparison in found if not comparison.agrees]
    for origin, comparison in failed:
        print(f"{origin}: {comparison}, difference {comparison.difference:.3g}", file=sys.stderr)
    sys.exit(1 if failed else 0)


def table(found: list[tuple[str, Comparison]]) -> str:
    """A row for each metric, `compat` and origin, in the order of `METRICS`, then what is not one of them."""
    groups: dict[tuple[str, str, str, bool], list[Comparison]] = defaultdict(list)
    for origin, comparison in found:
        groups[comparison.metric, comparison.compat, origin, comparison.relative].append(comparison)
    order = {name: place for place, name in enumerate(METRICS)}
    lines = [
        "| metric | definition | source | compared with | `compat` | numbers | largest difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for (name, compat, origin, relative), several in sorted(
        groups.items(), key=lambda item: (order.get(item[0][0], len(order)), *item[0])
    ):
        metric = METRICS.get(name)
        definition, source = (metric.definition, metric.source) if metric else ("", "")
        worst = max(comparison.difference for comparison in several)
        lines.append(
            f"| {name} | {definition} | {source} | {origin} | {compat} | {len(several)} | "
            f"{worst:.1e}{' (relative)' if relative else ''} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
