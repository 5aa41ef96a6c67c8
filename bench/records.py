"""`python -m bench.records`: all teacher-forced metrics of a set against one plain forward over it, in one process.

The forward is `sequence_logps` over all tokens. The metrics are those that follow from the same texts alone: the
lower-cased text and the reference model of two attacks need forwards of their own, gradient norms a backward pass.
Both sides take turns; medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch

from bench.machine import processor
from bench.report import DOCS, write_between
from bench.workload import SUBJECT, random_model, rows_for
from expunge.data.tokenize import TokenizedExample
from expunge.evaluation.metrics import TokenRecord, attacks
from expunge.evaluation.metrics.memorization import (
    exact_memorization,
    extraction_strength,
    mean_nll,
    perplexity,
    probability,
)
from expunge.evaluation.teacher_forcing import token_records
from expunge.model.load import LoadedModel, load_model
from expunge.model.logps import sequence_logps

SHARES = (0.2, 0.4)
"""k of min-k% and min-k%++."""


def main(argv: list[str] | None = None) -> None:
    """Measure and print.

    Raises:
        SystemExit: The subject is not there and no shape was asked for.
    """
    args = _arguments().parse_args(argv)
    if not args.shape and not SUBJECT.is_dir():
        raise SystemExit(f"no {SUBJECT.name} in ../shared/subjects beside the project: give --shape olmo-100m")
    with random_model(args.shape) if args.shape else nullcontext(str(SUBJECT)) as folder:
        lines = [
            line
            for dtype in args.dtypes
            for line in measure(
                load_model(folder, dtype=dtype, device=args.device), args.shape or SUBJECT.name, args.rows, args.repeats
            )
        ]
    print("\n".join(lines))
    if args.docs:
        write_between(DOCS / "evaluation.md", "cost", "\n".join(["```", *lines, "```"]))


def measure(loaded: LoadedModel, name: str, limit: int, repeats: int) -> list[str]:
    """Lines with the time of both sides and their ratio, of the first `limit` rows (0 is all)."""
    sides = rows_for(loaded, "validation")
    rows = [row for side in sides.values() for row in side][: limit or None]
    texts = [str(loaded.tokenizer.decode(row.input_ids)) for row in rows]
    kinds: dict[str, Callable[[], object]] = {
        "forward": lambda: sequence_logps(loaded, [row.input_ids for row in rows]),
        "records": lambda: token_records(loaded, rows, span="all"),
        "records and metrics": lambda: all_metrics(loaded, rows, texts),
    }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for repeat in range(repeats + 1):
        for kind, function in kinds.items():
            start = time.perf_counter()
            function()
            if repeat:  # the first round warms up
                times[kind].append(time.perf_counter() - start)
    lines = [
        f"{name}, {str(loaded.dtype).removeprefix('torch.')}, {loaded.device}, {processor()}, "
        f"{torch.get_num_threads()} threads: {len(rows)} rows, {sum(map(len, rows)):,} tokens, {repeats} repeats"
    ]
    forward = statistics.median(times["forward"])
    for kind, seconds in times.items():
        median = statistics.median(seconds)
        lines.append(
            f"{kind:20} {median:7.3f} s  {median / forward:5.3f}  (from {min(seconds):.3f} to {max(seconds):.3f} s)"
        )
    return lines


def all_metrics(loaded: LoadedModel, rows: Sequence[TokenizedExample], texts: Sequence[str]) -> list[list[float]]:
    """One pass, then every metric of each text: memorization of its completion, membership of the whole."""
    records = token_records(loaded, rows, span="all")
    return [
        _of_completion(record, row) + _of_text(record, text)
        for record, row, text in zip(records, rows, texts, strict=True)
    ]


def _of_completion(record: TokenRecord, row: TokenizedExample) -> list[float]:
    part = record[len(record) - len(row.targets("completion")) :]
    return [metric(part) for metric in (mean_nll, probability, perplexity, exact_memorization, extraction_strength)]


def _of_text(record: TokenRecord, text: str) -> list[float]:
    scores = [attacks.loss(record), attacks.zlib(record, text)]
    for share in SHARES:
        scores += [attacks.min_k(record, share), attacks.min_k_plus_plus(record, share)]
    return scores


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.records", description=__doc__)
    parser.add_argument("--shape", choices=["olmo-tiny", "olmo-100m"], help="random weights instead of the subject")
    parser.add_argument("--rows", type=int, default=0, help="rows of the validation split; 0 is all (default)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--docs", action="store_true", help="also write the figures into docs/evaluation.md")
    return parser


if __name__ == "__main__":
    main()
