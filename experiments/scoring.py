"""Subjects of the experiments, and what of them is scored: the documents that no run selects on.

Subjects are `demo`, `olmo` (beside the project), those of `python -m experiments.real` and those of
`python -m experiments.taught`, with `--taught` their folder.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from bench.workload import SEMEVAL, SHARED, SUBJECT
from experiments.demo.subject import ASSETS
from experiments.real import ROOT
from experiments.real import SUBJECTS as REAL
from experiments.taught import SUBJECTS as TAUGHT
from expunge.data.holdout import keyed_hashes, split_off, without_selection
from expunge.data.lume import read_lume
from expunge.data.sets import Sets, membership_texts


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


def subject_of(name: str, taught: str) -> Subject:
    """The subject of that name; those that `experiments.taught` makes lie in `taught`."""
    return SUBJECTS.get(name) or Subject(*(Path(taught) / name / part for part in ("subject", "retrained", "data")))


def reported(subject: Subject, folder: Path) -> Path:
    """The subject's rows, and the documents that no run selects on, as a folder that can be evaluated."""
    found = read_lume(subject.data, subject.split)
    if found.member is None or found.nonmember is None:
        raise SystemExit(f"{subject.data}: has no documents to attack")
    tokenizer = AutoTokenizer.from_pretrained(subject.model)
    documents = membership_texts(Sets(found.forget, found.retain, [], [], found.member, found.nonmember))
    halves = split_off(documents, found.nonmember, found.retain, tokenizer)
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


def subject_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which subjects, and where those are that `experiments.taught` made."""
    parser.add_argument("--subjects", nargs="+", choices=[*SUBJECTS, *TAUGHT], default=["demo"])
    parser.add_argument("--taught", default="", help="folder of the subjects of experiments.taught")
