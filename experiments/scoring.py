"""What the experiments measure: subjects, runs that are made once, and their scores on what no run selects on.

Subjects are `demo`, `olmo` (beside the project), those of `python -m experiments.real` and those of
`python -m experiments.taught`, with `--taught` their folder. Every run and its results go to FOLDER/SUBJECT/NAME-SEED, as
those of `experiments.arms`; what is there already is not done again.
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterator
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
from expunge.data.sets import Sets, membership_texts
from expunge.evaluation.results import read_results


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
    tokenizer = AutoTokenizer.from_pretrained(subject.model)
    halves = split_off(documents_of(found), found.nonmember, found.retain, tokenizer)
    calibration = {"selection_hmac": keyed_hashes(halves.hashes)}
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


def spread(values: list[float]) -> str:
    """`mean ± standard deviation`, or the value alone."""
    shown = f"{statistics.fmean(values):.3f}"
    return shown if len(values) == 1 or math.isnan(sum(values)) else f"{shown} ± {statistics.stdev(values):.3f}"


def subject_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which subjects, and where those are that `experiments.taught` made."""
    parser.add_argument("--subjects", nargs="+", choices=[*SUBJECTS, *TAUGHT], default=["demo"])
    parser.add_argument("--taught", default="", help="folder of the subjects of experiments.taught")
