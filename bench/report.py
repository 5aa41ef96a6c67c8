"""Runs -> Markdown tables of medians, and tables -> docs/performance.md."""

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "performance.md"
NAMES = {"expunge": "Expunge", "plain": "plain"}
Run = dict[str, Any]
"""The fields of a `Spec`, `name` of the model, and what was measured."""


def save(path: str | None, runs: Sequence[Run]) -> None:
    """Write all runs as JSON; nothing when there is no path."""
    if path:
        Path(path).write_text(json.dumps({"schema": 1, "runs": list(runs)}, indent=1))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def training(runs: Sequence[Run], epochs: int) -> str:
    """One row per model, recipe, implementation and precision; factors are against plain fp32 of the same work."""
    groups = _grouped(runs, "name", "recipe", "implementation", "dtype")
    rows = []
    for (name, recipe, implementation, dtype), group in groups.items():
        speed = _median(group, "tokens_per_second")
        base = groups.get((name, recipe, "plain", "float32"))
        faster = f"{speed / _median(base, 'tokens_per_second'):.1f}" if base else ""
        memory = _median(group, "peak_above_weights")
        smaller = f"{memory / _median(base, 'peak_above_weights'):.0%}" if base else ""
        speeds = [run["tokens_per_second"] for run in group]
        rows.append(
            [
                name,
                recipe,
                NAMES[implementation],
                dtype,
                f"{speed:,.0f}",
                f"{min(speeds):,.0f}-{max(speeds):,.0f}",
                faster,
                _seconds(_median(group, "seconds_per_epoch")),
                _seconds(_median(group, "set_up_seconds")),
                _seconds(_median(group, "set_up_seconds") + epochs * _median(group, "seconds_per_epoch")),
                f"{memory / 2**20:,.0f}",
                smaller,
                f"{_median(group, 'peak') / 2**30:.2f}",
                f"{_median(group, 'matrix_rate') / 1e9:,.0f}",
                f"{_median(group, 'floor_share'):.0%}",
            ]
        )
    header = "model|recipe|implementation|dtype|tokens/s|range|times plain fp32|s per epoch|set-up s"
    header += f"|{epochs} epochs s|peak above weights MiB|of plain fp32|peak GiB|GFLOP/s|of the floor's speed"
    return table(header.split("|"), rows)


def scoring(runs: Sequence[Run]) -> str:
    """One row per model: Expunge's generation against one row at a time."""
    rows = []
    for (name, bound), group in _grouped(runs, "name", "max_new_tokens").items():
        ours, plain = ([run for run in group if run["implementation"] == kind] for kind in ("expunge", "plain"))
        if not ours or not plain:
            continue
        fast, slow = _median(ours, "seconds"), _median(plain, "seconds")
        same = sum(a == b for a, b in zip(ours[0]["digests"], plain[0]["digests"], strict=True))
        count = ours[0]["rows"]
        cells = [f"{ours[0]['draft_right']} of {count}", f"{slow:.1f}", f"{fast:.1f}", f"{slow / fast:.1f}"]
        rows.append([name, str(count), str(bound), f"{plain[0]['new_tokens']:,}", *cells, f"{same} of {count}"])
    header = "model|rows|new tokens at most|new tokens|drafts right|one at a time s|Expunge s|times faster|same tokens"
    return table(header.split("|"), rows)


def growth(runs: Sequence[Run]) -> str:
    """One row per size of the data."""
    groups = _grouped(runs, "name", "recipe", "dtype", "copies")
    rows = []
    for (name, recipe, dtype, copies), group in groups.items():
        speed, memory = _median(group, "tokens_per_second"), _median(group, "peak_above_weights")
        first = groups[name, recipe, dtype, 1]
        cells = [f"{speed:,.0f}", f"{speed / _median(first, 'tokens_per_second') - 1:+.1%}"]
        cells += [_seconds(_median(group, "seconds_per_epoch")), _seconds(_median(group, "set_up_seconds"))]
        cells += [f"{memory / 2**20:,.0f}", f"{memory / _median(first, 'peak_above_weights') - 1:+.1%}"]
        rows.append([name, recipe, dtype, f"{copies}x", *cells])
    header = "model|recipe|dtype|data|tokens/s|against 1x|s per epoch|set-up s|peak above weights MiB|against 1x"
    return table(header.split("|"), rows)


def conditions(runs: Sequence[Run]) -> str:
    """One line on where and how the runs were made."""
    first = runs[0]
    threads = "1 thread, time that it computed" if first["threads"] == 1 else f"{first['threads']} threads"
    kinds = {(run["name"], run["recipe"], run["implementation"], run["dtype"], run["copies"]) for run in runs}
    return (
        f"{first['machine']}; {threads}; torch {first['torch']}; peak memory by "
        f"{first.get('memory_method', 'none')}; {len(runs)} runs of {len(kinds)} kinds, medians."
    )


def write_between(page: Path, marker: str, text: str) -> None:
    """Replace what stands between `<!-- marker -->` and `<!-- /marker -->`.

    Raises:
        SystemExit: The page does not have the markers.
    """
    content = page.read_text()
    begin, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->"
    if begin not in content or end not in content:
        raise SystemExit(f"{page.name} has no place for {marker}: it needs {begin.strip()} and {end}")
    head, rest = content.split(begin, 1)
    page.write_text(head + begin + text.rstrip() + "\n" + end + rest.split(end, 1)[1])


def show(text: str, page: Path, marker: str, *, docs: bool) -> None:
    """Print a table, and with `docs` write it into a page of docs."""
    print(text)
    if docs:
        write_between(page, marker, text)


def show_table(module: str, description: str | None, page: Path, marker: str, table: str) -> None:
    """The command of a module that prints a table and, with `--docs`, writes it into a page of docs."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--docs", action="store_true", help=f"also write it into docs/{page.name}")
    args = parser.parse_args()
    show(table, page, marker, docs=args.docs)


def _grouped(runs: Sequence[Run], *fields: str) -> dict[tuple[Any, ...], list[Run]]:
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run[field] for field in fields), []).append(run)
    return groups


def _median(runs: Sequence[Run], field: str) -> float:
    return float(statistics.median(run[field] for run in runs))


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
