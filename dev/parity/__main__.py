"""`python -m dev.parity`: every metric, its definition and source, and its largest difference from published numbers.

`--docs` writes the table into docs/papers.md. Exits with 1 when a difference is beyond its tolerance.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable

from bench.report import DOCS, show
from dev.parity import all_comparisons
from dev.parity.golden import Comparison, Golden
from expunge.evaluation.metrics import ATTACKS, METRICS

KNOWN = {**METRICS, **ATTACKS}

PAGE = DOCS / "papers.md"
PARTS = {
    "mean_nll": "mean of -log p over the completion tokens, nats",
    "token log-probability": "log p of a token, nats",
    "truth_ratio": "R, of which the truth ratios are made",
    "auc": "P(a member scores higher than a non-member) + P(equal)/2",
    "harmonic_mean": "n / sum(1/value)",
    "generated text": "1 where a greedy text is the stored one, letter by letter",
    "prompt": "1 where the few-shot prompt is the stored one",
    "tokenization": "1 where the completion's tokens are the stored ones",
}
"""What is compared beside the metrics, as parts of them."""


def main(argv: list[str] | None = None) -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(prog="python -m dev.parity", description=__doc__)
    parser.add_argument("--docs", action="store_true", help=f"also write the table into docs/{PAGE.name}")
    args = parser.parse_args(argv)
    golden = Golden()
    if not golden.root.is_dir():
        raise SystemExit("no golden numbers in ../shared/golden beside the project")
    found = list(all_comparisons(golden))
    show(table(found), PAGE, "parity", docs=args.docs)
    failed = [(origin, comparison) for origin, comparison in found if not comparison.agrees]
    for origin, comparison in failed:
        print(f"{origin}: {comparison}, difference {comparison.difference:.3g}", file=sys.stderr)
    sys.exit(1 if failed else 0)


def table(found: Iterable[tuple[str, Comparison]]) -> str:
    """A row for each metric, origin and variant, in the order of `METRICS`, then their parts."""
    groups: dict[tuple[str, str, str, bool], list[Comparison]] = defaultdict(list)
    for origin, comparison in found:
        groups[comparison.metric, origin, comparison.compat, comparison.relative].append(comparison)
    names = [*KNOWN, *PARTS]
    lines = [
        "| metric | definition | source | numbers of | variant | compared | largest difference | tolerance |",
        "|---|---|---|---|---|---:|---:|---:|",
    ]
    last = None
    for key, several in sorted(groups.items(), key=lambda item: (names.index(item[0][0]), *item[0])):
        name, origin, compat, relative = key
        head = ["", "", ""]
        if name != last:  # what a metric is stands in its first row
            head = [name, *((KNOWN[name].definition, KNOWN[name].source) if name in KNOWN else (PARTS[name], ""))]
        last = name
        worst = max(comparison.difference for comparison in several)
        bound = max(comparison.tolerance for comparison in several)
        ends = [f"{number:.0e}{' relative' if relative else ''}" if number else "0" for number in (worst, bound)]
        lines.append("| " + " | ".join([*head, origin, compat, str(len(several)), *ends]) + " |")
    lines += ["", "All other metrics have no published numbers; tests hold them against their slow definitions."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
