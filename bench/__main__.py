"""`python -m bench`: Expunge against the plain implementation on this machine's CPU, as tables.

Every measurement is a process of its own; the kinds take turns, so that a drift of the machine meets all of them.
"""

import argparse
import json
import sys
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import torch

from bench import report
from bench.measure import Spec, in_own_process
from bench.workload import SHAPES, SUBJECT, random_model
from expunge.model.device import pick_dtype

PARTS = ("train", "score", "growth")
GROWTH = (1, 4, 16)
SUBJECT_NAME = "subject"
EPOCHS = 14
"""Of the recipe `npo`, for the column of a whole run."""


def main(argv: list[str] | None = None) -> None:
    """Measure what was asked for and print the tables."""
    args = _arguments().parse_args(argv)
    if args.input:
        runs = json.loads(Path(args.input).read_text())["runs"]
    else:
        with ExitStack() as stack:
            runs = measure(plan(args, stack), args.repeats, args.output)
    report.show(tables(runs), report.PAGE, "cpu", docs=args.docs)


def plan(args: argparse.Namespace, stack: ExitStack) -> list[tuple[str, str, Spec]]:
    """Part, model name and spec of every kind of measurement; random models are written to a folder that `stack` ends.

    Raises:
        SystemExit: The subject is asked for and not there.
    """
    folders: dict[str, str] = {}
    for name in args.models:
        if name == SUBJECT_NAME and not SUBJECT.is_dir():
            raise SystemExit(f"no {SUBJECT.name} in ../shared/subjects beside the project: give --models olmo-100m")
        folders[name] = str(SUBJECT) if name == SUBJECT_NAME else stack.enter_context(random_model(name))
    kinds = []
    for name, folder in folders.items():
        first = Spec("train", "plain", folder, seconds=args.seconds)
        if "train" in args.parts:
            for recipe in args.recipes:
                for dtype in args.dtypes:
                    for implementation in ("plain", "expunge"):
                        spec = replace(first, implementation=implementation, recipe=recipe, dtype=dtype)
                        kinds.append(("train", name, spec))
        if "score" in args.parts:
            # Random models never stop and no draft is ever right: fewer rows and tokens show what batching alone gives.
            rows, bound = (args.score_rows, 256) if name == SUBJECT_NAME else (32, 64)
            for implementation in ("plain", "expunge"):
                spec = replace(first, task="score", implementation=implementation, rows=rows, max_new_tokens=bound)
                kinds.append(("score", name, spec))
        if "growth" in args.parts and name == args.models[0]:
            for copies in GROWTH:
                spec = replace(first, implementation="expunge", dtype=args.dtypes[-1], copies=copies)
                kinds.append(("growth", name, spec))
    return kinds


def measure(kinds: list[tuple[str, str, Spec]], repeats: int, output: str | None) -> list[report.Run]:
    """Run every kind `repeats` times, taking turns; what there is goes to `output` after each."""
    runs: list[report.Run] = []
    for repeat in range(repeats):
        for part, name, spec in kinds:
            result = in_own_process(spec)
            runs.append({**asdict(spec), "model": "", "part": part, "name": name, "repeat": repeat, **result})
            done = (
                f"{result['tokens_per_second']:,.0f} tokens/s" if "tokens" in result else f"{result['seconds']:.1f} s"
            )
            print(
                f"{len(runs)}/{repeats * len(kinds)}  {part} {name} {spec.implementation} {spec.recipe} {spec.dtype} "
                f"{spec.copies}x: {done}",
                file=sys.stderr,
            )
            report.save(output, runs)
    return runs


def tables(runs: list[report.Run]) -> str:
    """All tables that the runs give, with their headings."""
    by_part = {part: [run for run in runs if run["part"] == part] for part in PARTS}
    pieces = [report.conditions(runs)]
    if by_part["train"]:
        pieces += ["### Training", report.training(by_part["train"], EPOCHS)]
    if by_part["score"]:
        pieces += ["### Scoring", report.scoring(by_part["score"])]
    if by_part["growth"]:
        pieces += ["### Growth", report.growth(by_part["growth"])]
    return "\n\n".join(pieces)


def _arguments() -> argparse.ArgumentParser:
    best = str(pick_dtype("auto", torch.device("cpu"))).removeprefix("torch.")
    models = [SUBJECT_NAME] * SUBJECT.is_dir() + ["olmo-100m"]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--models", nargs="+", choices=[SUBJECT_NAME, *SHAPES], default=models)
    parser.add_argument("--recipes", nargs="+", choices=["paper", "npo"], default=["paper", "npo"])
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=sorted({"float32", best})[::-1])
    parser.add_argument("--repeats", type=int, default=3, help="processes of each kind (default 3)")
    parser.add_argument("--seconds", type=float, default=30, help="measured training time of each (default 30)")
    parser.add_argument("--score-rows", type=int, default=96, help="rows to generate for; 0 is all (default 96)")
    parser.add_argument("--output", help="also write every run to this JSON file, after each of them")
    parser.add_argument("--input", help="measure nothing, make the tables of such a file")
    parser.add_argument("--docs", action="store_true", help="also write the tables into docs/performance.md")
    return parser


if __name__ == "__main__":
    main()
