"""`python -m experiments.quality`: how well methods forget and keep, over seeds, as tables.

    python -m experiments.quality methods --output FOLDER [--subjects demo olmo] [--seeds 0 1 2 3 4]
    python -m experiments.quality sweep   --output FOLDER      learning rates of the methods to compare with, one seed

Subjects are `demo`, `olmo` (beside the project), those of `python -m experiments.real` and those of
`python -m experiments.taught`, with `--taught` their folder.

Every run and its results go to FOLDER/SUBJECT/NAME-SEED; what is there already is not done again. Membership is
reported on the documents that no run chose anything on, whatever the method.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from bench.workload import SEMEVAL, SHARED, SUBJECT
from experiments.demo.subject import ASSETS
from experiments.real import ROOT
from experiments.real import SUBJECTS as REAL
from experiments.taught import SUBJECTS as TAUGHT
from expunge import EvaluateConfig, UnlearnConfig, evaluate, unlearn
from expunge.data.holdout import Side, keyed_hashes, split_off, without_selection
from expunge.data.lume import LumeData, read_lume
from expunge.evaluation.bootstrap import t_quantile
from expunge.evaluation.results import read_results
from expunge.train.sets import Sets, membership_texts

PAPER_RATES = (1.25e-4, 5e-4, 2e-3, 8e-3)
"""Learning rates that each method to compare with is tried with; the paper's 1e-4 moves nothing on small models."""
METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "npo": {"recipe": "npo"},
    "paper": {"recipe": "paper"},
    "gradient-difference": {"recipe": "paper", "loss": "gradient_ascent", "loss_args": "", "kl_weight": 0.0},
}
"""Name -> settings. The first two run their recipe's learning rate."""
COLUMNS = ("task", "lowest retain", "auc", "zlib", "min-k", "mia score", "drift", "members", "unseen")


Show = Callable[[list[float]], str]
"""How the values over the seeds are put into one cell."""


@dataclass(frozen=True)
class Subject:
    """A model that has memorised a benchmark folder, and one that never saw its forget set."""

    model: Path
    retrained: Path
    data: Path
    split: str = "validation"


SUBJECTS = {
    "demo": Subject(ASSETS / "subject", ASSETS / "retrained", ASSETS / "data"),
    "olmo": Subject(SUBJECT, SHARED / "subjects" / f"{SUBJECT.name}-retrained", SEMEVAL),
    **{name: Subject(*(ROOT / name / part for part in ("subject", "retrained", "data"))) for name in REAL},
}


def main(argv: list[str] | None = None) -> None:
    """Run what is asked for and print its table."""
    args = _arguments().parse_args(argv)
    show = interval if args.intervals else spread
    for name, subject, folder, data, untouched, retrained in opened(args):
        rows = {"untouched": [untouched], "retrained": [retrained]}
        for kind, settings in kinds(args).items():
            rows[kind] = [
                score(subject, train(subject, folder / f"{kind}-{seed}", settings | {"seed": seed}), data)
                for seed in args.seeds
            ]
        print(f"### {name}, {args.what}, seeds {' '.join(map(str, args.seeds))}\n\n{table(rows, untouched, show)}\n")


def opened(
    args: argparse.Namespace,
) -> Iterator[tuple[str, Subject, Path, Path, dict[str, Any], dict[str, Any]]]:
    """Each subject asked for: name, subject, folder of its runs, reported data, results of untouched and retrained model."""
    for name in args.subjects:
        subject = subject_of(name, args.taught)
        if not subject.model.is_dir():
            raise SystemExit(f"{subject.model}: not there: leave {name} out of --subjects")
        folder = Path(args.output) / name
        data = reported(subject, folder / "data")
        untouched = score(subject, folder / "untouched", data, str(subject.model))
        yield name, subject, folder, data, untouched, score(subject, folder / "retrained", data, str(subject.retrained))


def subject_of(name: str, taught: str) -> Subject:
    """The subject of that name; those that `experiments.taught` makes lie in `taught`."""
    return SUBJECTS.get(name) or Subject(*(Path(taught) / name / part for part in ("subject", "retrained", "data")))


def kinds(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Name -> settings of all runs."""
    if args.what == "sweep":
        return {
            f"{method}-{rate:g}": METHODS[method] | {"learning_rate": rate}
            for method in METHODS
            if method not in ("default", "npo")
            for rate in PAPER_RATES
        }
    chosen = dict(pair.split("=") for pair in args.rates)
    return {
        name: settings | ({"learning_rate": float(chosen[name])} if name in chosen else {})
        for name, settings in METHODS.items()
        if name in args.methods
    }


def train(subject: Subject, folder: Path, settings: dict[str, Any]) -> Path:
    """The run, unless it is there."""
    if not (folder / "adapter").is_dir():
        config = UnlearnConfig(
            **settings,
            benchmark="semeval",
            data=str(subject.data),
            split=subject.split,
            model=str(subject.model),
            output=str(folder),
            overwrite=True,
        )
        unlearn(config)
    return folder


def score(subject: Subject, run: Path, data: Path, model: str | None = None) -> dict[str, Any]:
    """Results of a run, or of a plain model, on `data`."""
    file = run / "results_after.json"
    if not file.exists():
        run.mkdir(parents=True, exist_ok=True)
        evaluate(
            EvaluateConfig(
                model=model or str(subject.model),
                adapter=None if model else str(run),
                benchmark="lume",
                data=str(data),
                attacks="loss,zlib,min_k",
                max_new_tokens=96,
                output=str(file),
            )
        )
    return read_results(file)


def reported(subject: Subject, folder: Path) -> Path:
    """The subject's rows, and the documents that no run selects on, as a folder that can be evaluated."""
    found = read_lume(subject.data, subject.split)
    if found.member is None or found.nonmember is None:
        raise SystemExit(f"{subject.data}: has no documents to attack")
    hashes, _ = split_off(documents_of(found), found.retain, AutoTokenizer.from_pretrained(subject.model))
    calibration = {"selection_hmac": keyed_hashes(hashes)}
    sides = {
        "forget": found.forget,
        "retain": found.retain,
        "member": without_selection(found.member, calibration),
        "nonmember": without_selection(found.nonmember, calibration),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in sides.items():
        if name in ("forget", "retain"):
            lines = [
                {"id": row.id, "input": row.prompt, "output": row.completion, "task": row.task, "kind": row.kind}
                for row in rows
            ]
        else:
            lines = [{"id": row.id, "document": row.completion} for row in rows]
        file, content = folder / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines)
        if file.exists() and file.read_text() != content:
            raise SystemExit(f"{file}: other rows than would be reported now: give another --output")
        file.write_text(content)
    return folder


def documents_of(found: LumeData) -> list[Side]:
    """The documents, forgotten and unseen, one half of which steers a run on this data."""
    member, nonmember = found.member or [], found.nonmember or []
    return membership_texts(Sets(found.forget, found.retain, [], [], member, nonmember))


def summary(results: dict[str, Any], untouched: dict[str, Any]) -> dict[str, float]:
    """The numbers of one row; the task aggregate of data without questions is over the terms that there are."""
    half = len(results["terms"]) // 2
    kept = [
        after / before
        for after, before in zip(results["terms"][half:], untouched["terms"][half:], strict=True)
        if before
    ]
    terms = [term for term in results["terms"] if term is not None]
    metrics = results["metrics"]

    def auc(name: str) -> float:
        return metrics[f"membership/{name}_auc"]["value"]

    members, unseen = results["mean_nll"]["member"], results["mean_nll"]["nonmember"]
    return {
        "task": statistics.harmonic_mean(terms),
        "forget": statistics.harmonic_mean([term for term in results["terms"][:half] if term is not None]),
        "lowest retain": min(kept),
        "auc": auc("loss"),
        "zlib": auc("zlib"),
        "min-k": auc("min_k_20"),
        "mia score": results["mia_score"],
        "drift": unseen / untouched["mean_nll"]["nonmember"] - 1,
        "members": members,
        "unseen": unseen,
    }


def table(rows: dict[str, list[dict[str, Any]]], untouched: dict[str, Any], show: Show) -> str:
    """Every number over the seeds: mean and standard deviation, or as `show` has it."""
    lines = [f"| | {' | '.join(COLUMNS)} |", f"|---|{'---:|' * len(COLUMNS)}"]
    for name, results in rows.items():
        numbers = [summary(own, untouched) for own in results]
        cells = [show([own[column] for own in numbers]) for column in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """`mean ± standard deviation`, or the value alone."""
    shown = f"{statistics.fmean(values):.3f}"
    return shown if len(values) == 1 or math.isnan(sum(values)) else f"{shown} ± {statistics.stdev(values):.3f}"


def interval(values: list[float]) -> str:
    """`mean [low, high]`, Student's 95 % interval of the mean over seeds, or the value alone."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.3f}"
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"


def subject_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which subjects, and where those are that `experiments.taught` made."""
    parser.add_argument("--subjects", nargs="+", choices=[*SUBJECTS, *TAUGHT], default=["demo"])
    parser.add_argument("--taught", default="", help="folder of the subjects of experiments.taught")


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.quality", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["methods", "sweep"])
    parser.add_argument("--output", required=True, help="folder of all runs")
    subject_arguments(parser)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--rates", nargs="*", default=[], help="METHOD=RATE, as the sweep found it")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--intervals", action="store_true", help="95 %% intervals of the means in place of deviations")
    return parser


if __name__ == "__main__":
    main()
