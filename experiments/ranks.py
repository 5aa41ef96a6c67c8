"""`python -m experiments.ranks`: which rank an adapter needs, by what it is put on; one table and one picture a subject.

    python -m experiments.ranks --output FOLDER --subjects neox --taught TAUGHT [--ranks 1 2 5 16 64 256] [--seeds 0 1 2 3 4]

Every run is one of recipe `default` in FOLDER/SUBJECT/TARGETS-RANK-SEED, kept and scored as by `experiments.arms`. Then
it is attacked: the merged model is fine-tuned on a tenth of the forget set until half of the rest is back
(experiments/relearning.py). A rank above the model's width stands for that width, which can do all that it could. The
picture goes to FOLDER/SUBJECT/ranks.svg and ranks.png.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from transformers import AutoConfig

from experiments.relearning import MOST, Attack, prepare_attack, steps_to_relearn
from experiments.scoring import opened, score, spread, subject_arguments, summary, train
from expunge.api.finished import merge
from expunge.data.lume import read_lume

RANKS = (1, 2, 5, 16, 64, 256)
TARGETS = {"q,v": "auto", "all-linear": "all-linear"}
PANELS = {
    "task": "task aggregate (higher is better)",
    "lowest retain": "lowest retain term, share of before",
    "distance": "membership AUC: distance from the retrained model's",
    "drift": "change of the unseen texts' loss",
    "relearning": f"steps of relearning ({MOST}: given up)",
}
COLUMNS = ("task", "lowest retain", "auc", "distance", "min-k", "mia score", "drift", "steps", "relearning")
Row = dict[str, float]


def main(argv: list[str] | None = None) -> None:
    """Run, attack, print and draw."""
    args = _arguments().parse_args(argv)
    for name, subject, folder, data, untouched, retrained in opened(args):
        width = AutoConfig.from_pretrained(subject.model).hidden_size
        ranks = sorted({min(rank, width) for rank in args.ranks})
        attack = prepare_attack(subject.model, read_lume(subject.data, subject.split).forget)
        oracle: Row = summary(retrained, untouched) | {"distance": 0.0, "steps": math.nan}
        oracle["relearning"] = relearned(folder / "retrained", subject.retrained, attack)
        rows: dict[str, dict[int, list[Row]]] = {label: {rank: [] for rank in ranks} for label in TARGETS}
        for seed in args.seeds:
            for label, modules in TARGETS.items():
                for rank in ranks:
                    settings = {"recipe": "default", "lora_rank": rank, "target_modules": modules, "seed": seed}
                    run = train(subject, folder / f"{label}-{rank}-{seed}", settings)
                    numbers: Row = summary(score(subject, run, data), untouched)
                    numbers["distance"] = abs(numbers["auc"] - oracle["auc"])
                    numbers["steps"] = json.loads((run / "manifest.json").read_text())["steps"]
                    if not (run / "merged").is_dir():
                        merge(str(run), str(run / "merged"))
                    numbers["relearning"] = relearned(run, run / "merged", attack)
                    rows[label][rank].append(numbers)
        print(f"### {name}, ranks, seeds {' '.join(map(str, args.seeds))}\n\n{table(rows, oracle)}\n")
        draw(rows, oracle, folder)


def relearned(folder: Path, model: Path, attack: Attack) -> int:
    """Steps of relearning that a model takes, once for each folder of its results."""
    file = folder / "relearning.json"
    if not file.exists():
        file.write_text(json.dumps({"steps": steps_to_relearn(model, attack), "most": MOST}))
    return json.loads(file.read_text())["steps"]


def table(rows: dict[str, dict[int, list[Row]]], oracle: Row) -> str:
    """Mean and standard deviation over the seeds of every number, the steps of every relearning, and the retrained model's."""
    lines = [f"| targets | rank | {' | '.join(COLUMNS)} |", f"|---|{'---:|' * (len(COLUMNS) + 1)}"]
    for label, ranks in rows.items():
        for rank, found in ranks.items():
            cells = [_cell(column, [row[column] for row in found]) for column in COLUMNS]
            lines.append(f"| {label} | {rank} | {' | '.join(cells)} |")
    lines.append(f"| retrained | | {' | '.join(_cell(column, [oracle[column]]) for column in COLUMNS)} |")
    return "\n".join(lines)


def _cell(column: str, values: list[float]) -> str:
    if column != "relearning":
        return spread(values)
    return ", ".join("-" if value >= MOST else f"{value:g}" for value in sorted(values))


def draw(rows: dict[str, dict[int, list[Row]]], oracle: Row, folder: Path) -> None:
    """One panel a number: its mean over the seeds against the rank, with the standard deviation, a line for each choice
    of targets; of the steps of relearning, of which many are given up, the median and the range.
    """
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(3.2 * len(PANELS), 3), layout="constrained")
    for axis, (column, title) in zip(axes, PANELS.items(), strict=True):
        for label, ranks in rows.items():
            _line(axis, label, ranks, column)
        if column in ("task", "relearning"):
            axis.axhline(oracle[column], color="0.5", linestyle=":", label="retrained")
        axis.set(title=title, xlabel="rank", xscale="log")
        axis.title.set_fontsize(9)
        axis.set_xticks(list(next(iter(rows.values()))), labels=[str(rank) for rank in next(iter(rows.values()))])
        axis.minorticks_off()
    axes[0].legend(fontsize=8)
    for kind in ("svg", "png"):
        figure.savefig(folder / f"ranks.{kind}", dpi=150)
    pyplot.close(figure)


def _line(axis: Axes, label: str, ranks: dict[int, list[Row]], column: str) -> None:
    values = [[row[column] for row in found] for found in ranks.values()]
    if column == "relearning":
        middles = [statistics.median(group) for group in values]
        errors = [[m - min(group) for m, group in zip(middles, values, strict=True)]]
        errors += [[max(group) - m for m, group in zip(middles, values, strict=True)]]
    else:
        middles = [statistics.fmean(group) for group in values]
        errors = [[statistics.stdev(group) if len(group) > 1 else 0.0 for group in values]] * 2
    axis.errorbar(list(ranks), middles, yerr=errors, marker="o", markersize=4, capsize=2, label=label)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.ranks", description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="folder of all runs; one of experiments.arms may be used again")
    subject_arguments(parser)
    parser.add_argument("--ranks", nargs="+", type=int, default=list(RANKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    return parser


if __name__ == "__main__":
    main()
