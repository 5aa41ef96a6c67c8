"""`python -m experiments.retrained`: how far retrained models are from each other, which no run can be asked to do better than.

    python -m experiments.retrained --output FOLDER --taught TAUGHT --subjects neox [--seeds 0 1 2 3 4]

FOLDER is that of `experiments.arms`. The retrained model of a subject of `experiments.taught` (seed 0) is trained again with other
first weights and another order of the same texts, in FOLDER/SUBJECT/retrained-SEED, and scored on the reported documents.
"""

import argparse
from pathlib import Path

from transformers import AutoTokenizer

from experiments.scoring import Subject, opened, score, spread, summary
from experiments.taught import SUBJECTS, retrain

COLUMNS = ("task", "auc", "zlib", "min-k", "mia score", "unseen")


def main(argv: list[str] | None = None) -> None:
    """Print a table for each subject: a row for each model, and their mean and standard deviation."""
    args = _arguments().parse_args(argv)
    for name, subject, folder, data, untouched, first in opened(args):
        rows = {}
        for seed in args.seeds:
            model = folder / f"retrained-{seed}"
            results = score(subject, model, data, str(retrained(name, subject, seed, model))) if seed else first
            rows[str(seed)] = summary(results, untouched)
        print(f"### {name}, retrained models\n\n| seed | {' | '.join(COLUMNS)} |\n|---|{'---:|' * len(COLUMNS)}")
        for label, chosen in [*rows.items(), ("all", None)]:
            values = [[row[column] for row in ([chosen] if chosen else rows.values())] for column in COLUMNS]
            print(f"| {label} | {' | '.join(map(spread, values))} |", flush=True)


def retrained(name: str, subject: Subject, seed: int, folder: Path) -> Path:
    """The folder of the retrained model of that seed, trained unless it is there."""
    if not (folder / "config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(subject.retrained)
        model = retrain(name, tokenizer, seed)
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.retrained", description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="folder of the runs of experiments.arms")
    parser.add_argument("--subjects", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--taught", required=True, help="folder of the subjects of experiments.taught")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    return parser


if __name__ == "__main__":
    main()
