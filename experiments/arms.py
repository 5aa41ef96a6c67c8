"""`python -m experiments.arms --output FOLDER --minutes 60`: the arms of the comparison, paired by seed, as one table.

    python -m experiments.arms --output FOLDER sweep      learning rates of every arm on the demo, which then has no say
    python -m experiments.arms --output FOLDER run        what is missing, in the order of its worth
    python -m experiments.arms --output FOLDER table      Markdown: every row, and the verdict of experiments/criterion.py

Every run is a line of FOLDER/runs.jsonl, with its raw measurements; what is there is not done again, so a table grows over
many short sittings. A run that would not end within `--minutes` is not begun. Subjects: `demo`, `olmo` (beside the
project), those of `experiments.taught` (`--taught FOLDER`) and those of `experiments.real`. Arm D is the recipe of commit
817f314: `--steered` names a work tree of it. Arm O needs the model from before, which those of `experiments.real` alone
have, so it is not ranked. The recipes run as a user runs them, with their own number of steps; the arms share a budget.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.criterion import distances, mean_ranks
from experiments.real import DEVICE, PART, facts_nll, origin_of
from experiments.real import SUBJECTS as REAL
from experiments.scoring import Subject, reported, subject_of
from expunge import EvaluateConfig, UnlearnConfig, evaluate, unlearn
from expunge.evaluation.results import read_results

SWEPT = "demo"
"""Subject of the learning-rate sweep."""
BUDGET: dict[str, Any] = {"max_steps": 300, "eval_every": 25, "lora_rank": 16, "context_tokens": 0}
"""What all arms share, texts alone among it; replay, average and early stopping are those of the recipe."""
ARMS: dict[str, dict[str, Any]] = {
    "A": {"loss": "npo", "loss_args": "beta=0.5,level=token"},
    "A sequence": {"loss": "npo", "loss_args": "beta=0.1,level=sequence", "forget_span": "completion"},
    "B": {"loss": "target_nll"},
    "C": {"loss": "target_kl"},
    "O": {"loss": "target_kl"},
    "default": {"recipe": "default"},
    "npo": {"recipe": "npo"},
    "paper": {"recipe": "paper"},
}
"""Name -> what differs from the default recipe. `D` is run in the work tree of its commit, recipes have their own budget."""
SUBJECTS = ("olmo", "llama", "neox", "qwen", "gpt2", PART)
FIXED = ("before", "retrained")
"""Models without a run, measured as the arms are."""
NEED_ORIGIN = ("O",)
"""Arms with `--origin`, the model from before."""
RATES = (5e-4, 1.5e-3, 5e-3)
FORGET_WEIGHTS = (1.0, 8.0)
"""Every arm is swept over rates and forget weights: with replay and retain terms of 7 in all, the second decides. Recipes
keep theirs."""
WHOLE = ("steps", "seconds")
ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")


@dataclass(frozen=True)
class Job:
    """One run: an arm with its settings on a subject; `before` and `retrained` are models without a run."""

    arm: str
    subject: str
    seed: int
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """Folder of the run, and what the table knows it by."""
        swept = "".join(f"-{key}={value}" for key, value in self.settings)
        return f"{self.arm}{swept}-{self.seed}".replace(" ", "-")


def main(argv: Sequence[str] | None = None) -> None:
    """Sweep, run or print."""
    args = _arguments().parse_args(argv)
    if args.what == "table":
        lines = [line for line in _lines(args.output) if line["subject"] in (args.subjects or [line["subject"]])]
        print(tables(lines, _chosen(args.output, args.set)))
        return
    end = time.monotonic() + 60 * args.minutes
    jobs = list(sweep(args.arms) if args.what == "sweep" else wanted(args, _chosen(args.output, args.set)))
    for job in jobs:
        done = _lines(args.output)
        if any((line["name"], line["subject"]) == (job.name, job.subject) for line in done):
            continue
        left = end - time.monotonic()
        if _expected(job, done) > left:
            print(f"{job.subject} {job.name}: would take longer than the {left / 60:.0f} minutes left", flush=True)
            continue
        begun = time.monotonic()
        row = measure(job, args)
        line = {"name": job.name, "arm": job.arm, "subject": job.subject, "seed": job.seed, **dict(job.settings)}
        line |= row | {"seconds": round(time.monotonic() - begun)}
        with (args.output / "runs.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def sweep(arms: Sequence[str]) -> Iterator[Job]:
    """The demo without a run, and each of the arms at every rate and forget weight."""
    yield from (Job(arm, SWEPT, 0) for arm in FIXED)
    for rate in RATES:
        for weight in FORGET_WEIGHTS:
            for arm in ARMS:
                if arm in arms and arm not in NEED_ORIGIN and (weight == 1 or "recipe" not in ARMS[arm]):
                    yield Job(arm, SWEPT, 0, (("learning_rate", rate), ("forget_weight", weight)))


def wanted(args: argparse.Namespace, chosen: dict[str, dict[str, Any]]) -> Iterator[Job]:
    """All runs of the comparison, seed by seed, the subjects in the order in which they are named."""
    for seed in args.seeds:
        for subject in args.subjects or SUBJECTS:
            absent = {"before"} if seed != args.seeds[0] else set()
            absent |= {*NEED_ORIGIN} if subject not in REAL else set()
            absent |= set() if _retrained(subject_of(subject, args.taught), seed).is_dir() else {"retrained"}
            for arm in args.arms:
                if arm not in absent:
                    yield Job(arm, subject, seed, tuple(chosen.get(arm, {}).items()))


def measure(job: Job, args: argparse.Namespace) -> dict[str, Any]:
    """Run what the job says, unless it has been run, and measure the model that comes out."""
    real, subject = job.subject in REAL, subject_of(job.subject, args.taught)
    folder = args.output / job.subject
    data = subject.data if real else reported(subject, folder / "data")
    run = folder / job.name
    model, adapter = subject.model, None
    if job.arm == "retrained":
        model = _retrained(subject, job.seed)
    elif job.arm == "D":
        adapter = _steered(job, subject, run, args.steered)
    elif job.arm != "before":
        adapter = _run(job, subject, run)
    file = run / "results.json"
    if not file.exists():
        run.mkdir(parents=True, exist_ok=True)
        evaluate(
            EvaluateConfig(
                model=str(model),
                adapter=str(adapter) if adapter else None,
                benchmark="lume",
                data=str(data),
                attacks=",".join(ATTACKS),
                max_new_tokens=64,
                output=str(file),
                keep_predictions=str(run / "said"),
                overwrite=True,
            )
        )
    row = raw(read_results(file)) | {
        "fluency": said_nll(run / "said" / "forget.jsonl", data / "forget.jsonl", subject.model)
    }
    row["steps"] = json.loads((adapter / "manifest.json").read_text())["steps"] if adapter else 0
    if real:
        row["facts_nll"], row["facts_accuracy"] = facts_nll(model, adapter, subject.data / "facts.json")
    return row


def _retrained(subject: Subject, seed: int) -> Path:
    """The retrained model of a seed: there are others than the first of real subjects alone."""
    return subject.retrained if seed == 0 else subject.retrained.with_name(f"{subject.retrained.name}-{seed}")


def raw(results: dict[str, Any]) -> dict[str, Any]:
    """What the criterion reads, from a results file."""
    metrics = results["metrics"]
    knowledge = [entry["knowledge"] for entry in results["forget"].values() if entry.get("knowledge") is not None]
    terms = [term for term in results["terms"] if term is not None]
    names = {"loss": "loss", "zlib": "zlib", "min_k": "min_k_20", "min_k_plus_plus": "min_k_plus_plus_20"}
    row: dict[str, Any] = {
        f"auc_{attack}": metrics[f"membership/{name}_auc"]["value"] for attack, name in names.items()
    }
    return row | {
        "task_aggregate": statistics.harmonic_mean(terms),
        "terms": terms,
        "lowest_retain": min(terms[len(terms) // 2 :]),
        "exact_match": statistics.fmean(knowledge) if knowledge else 0.0,
        "unseen_nll": results["mean_nll"]["nonmember"],
        "member_nll": results["mean_nll"]["member"],
        "repetition": metrics["forget/repetition"]["value"],
    }


@torch.no_grad()
def said_nll(predictions: Path, data: Path, model: Path) -> float:
    """Fluency: mean over forget rows of the mean NLL (nats per token) of what was said, under the untouched model."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(DEVICE)
    prompts = {row["id"]: row["input"] for row in map(json.loads, data.read_text().splitlines())}
    nlls = []
    for prediction in map(json.loads, predictions.read_text().splitlines()):
        said = tokenizer(prediction["model_output"], add_special_tokens=False)["input_ids"]
        prompt = tokenizer(prompts[prediction["id"]])["input_ids"]
        if said:
            ids = torch.tensor([[*prompt, *said]], device=DEVICE)
            logps = loaded(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            nlls.append(-logps.gather(-1, ids[0, len(prompt) :, None]).mean().item())
    return statistics.fmean(nlls)


def tables(lines: list[dict[str, Any]], chosen: dict[str, dict[str, Any]]) -> str:
    """Every row, and the mean ranks of the arms that ran on all subjects and seeds with the chosen settings."""
    columns = ("task_aggregate", "lowest_retain", "retain_kept")
    columns += ("auc_loss", "auc_zlib", "auc_min_k", "auc_min_k_plus_plus", "member_nll", "unseen_nll", "exact_match")
    columns += ("repetition", "fluency", "facts_nll", "facts_accuracy", "steps", "seconds")
    before = {line["subject"]: line["terms"] for line in lines if line["arm"] == "before"}
    text = [f"| subject | run | {' | '.join(columns)} |", f"|---|---|{'---:|' * len(columns)}"]
    for line in sorted(lines, key=lambda line: (line["subject"], line["name"])):
        row = line | retain_kept(line["terms"], before.get(line["subject"], []))
        cells = [f"{row[name]:{',.0f' if name in WHOLE else '.3g'}}" if name in row else "" for name in columns]
        text.append(f"| {line['subject']} | {line['name']} | {' | '.join(cells)} |")
    runs = compared(lines, chosen)
    if runs:
        text += ["", "| arm | mean rank |", "|---|---:|"]
        text += [f"| {arm} | {rank:.2f} |" for arm, rank in sorted(mean_ranks(runs).items(), key=lambda pair: pair[1])]
        text += ["", "Ranked on " + ", ".join(f"{name} seed {seed}" for name, seed in sorted({k[1:] for k in runs}))]
    return "\n".join(text)


def retain_kept(terms: Sequence[float], before: Sequence[float]) -> dict[str, float]:
    """The smallest share of its value before that a retain term has kept; nothing without a value before."""
    half = len(terms) // 2
    shares = [after / was for after, was in zip(terms[half:], before[half:], strict=False) if was]
    return {"retain_kept": min(shares)} if shares else {}


def compared(
    lines: list[dict[str, Any]], chosen: dict[str, dict[str, Any]]
) -> dict[tuple[str, str, int], dict[str, float]]:
    """(arm, subject, seed) -> columns of the criterion, for the most places at which every arm has run."""
    fixed: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in lines:
        if line["arm"] in FIXED:
            fixed.setdefault((line["subject"], line["arm"]), []).append(line)
    found: dict[tuple[str, str, int], dict[str, float]] = {}
    for line in lines:
        place = line["subject"]
        settings = {key: line.get(key) for key in chosen.get(line["arm"], {})}
        known = (place, "before") in fixed and (place, "retrained") in fixed
        if line["arm"] in ARMS | {"D": 0} and place != SWEPT and known and settings == chosen.get(line["arm"], {}):
            row = distances(line, fixed[place, "before"][0], fixed[place, "retrained"])
            found[line["arm"], place, line["seed"]] = row
    arms = {arm for arm, _, _ in found if arm not in NEED_ORIGIN}
    places = {key[1:] for key in found if all((arm, *key[1:]) in found for arm in arms)}
    return {key: row for key, row in found.items() if key[0] in arms and key[1:] in places}


def _chosen(folder: Path, given: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Arm -> settings of its best run in the sweep, by rank among its own, none before there has been one; over them
    those that are given for all arms.
    """
    lines = [line for line in _lines(folder) if line["subject"] == SWEPT]
    fixed = {line["arm"]: line for line in lines}
    best: dict[str, dict[str, Any]] = {}
    for arm in ARMS if {*FIXED} <= fixed.keys() else ():
        tried = {json.dumps({key: row[key] for key in ("learning_rate", "forget_weight")}): row for row in lines
               if row["arm"] == arm and "learning_rate" in row}  # fmt: skip
        if tried:
            runs = {
                (name, SWEPT, 0): distances(row, fixed["before"], [fixed["retrained"]]) for name, row in tried.items()
            }
            ranked = mean_ranks(runs)
            best[arm] = json.loads(min(ranked, key=lambda name: ranked[name]))
    if "C" in best:
        best["O"] = best["C"]
    pairs = dict(pair.split("=", 1) for pair in given)
    return {arm: best.get(arm, {}) | {key: json.loads(value) for key, value in pairs.items()} for arm in ARMS}


def _run(job: Job, subject: Subject, run: Path) -> Path:
    """A run of this code, unless it is there; one that was interrupted goes on from its last checkpoint."""
    if not (run / "adapter").is_dir():
        begun = (run / "checkpoints").is_dir()
        arm = ARMS[job.arm]
        budget = {} if "recipe" in arm else BUDGET | {"recipe": "default"}
        settings = budget | arm | dict(job.settings) | _texts(job, subject)
        if job.arm in NEED_ORIGIN:
            settings["origin"] = str(origin_of(job.subject))
        config = UnlearnConfig(
            model=str(subject.model),
            output=str(run),
            seed=job.seed,
            overwrite=not begun,
            resume=begun,
            **settings,
        )
        unlearn(config, progress=True)
    return run


def _steered(job: Job, subject: Subject, run: Path, tree: Path | None) -> Path:
    """A run of recipe `steered` by the code of its own commit, unless it is there."""
    if not (run / "adapter").is_dir():
        if tree is None:
            raise SystemExit("arm D: give --steered, a work tree of commit 817f314")
        settings = {"recipe": "steered", "model": subject.model, "output": run, "seed": job.seed}
        given = [part for key, value in (settings | _texts(job, subject)).items() for part in (f"--{key}", str(value))]
        command = [sys.executable, "-m", "expunge", "unlearn", "--overwrite", *given]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(tree / "src")})
    return run


def _texts(job: Job, subject: Subject) -> dict[str, str]:
    """The settings that name the texts: real subjects have unseen texts of every kind, the others documents alone."""
    if job.subject in REAL:
        return {name: str(subject.data / f"{name}.jsonl") for name in ("forget", "retain", "holdout")}
    return {"benchmark": "semeval", "data": str(subject.data), "split": subject.split}


def _expected(job: Job, done: list[dict[str, Any]]) -> float:
    """Seconds that the job will take, by the longest of its kind so far; 0 where there has been none."""
    fixed = job.arm in FIXED
    return max(
        (line["seconds"] for line in done
         if line["subject"] == job.subject and (line["arm"] in FIXED) == fixed), default=0.0
    )  # fmt: skip


def _lines(folder: Path) -> list[dict[str, Any]]:
    file = folder / "runs.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.arms", description=__doc__.splitlines()[0])
    every = [*FIXED, *ARMS]
    parser.add_argument("what", choices=["sweep", "run", "table"])
    parser.add_argument("--output", type=Path, required=True, help="folder of all runs and of runs.jsonl")
    parser.add_argument("--subjects", nargs="+", help=f"by default {' '.join(SUBJECTS)}; of a table all")
    parser.add_argument("--arms", nargs="+", choices=[*every, "D"], default=every, help="all but D by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of every arm but D")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing that would not end by then")
    parser.add_argument("--taught", default="", help="folder of the subjects of experiments.taught")
    parser.add_argument("--steered", type=Path, help="work tree of commit 817f314, for arm D")
    return parser


if __name__ == "__main__":
    main()
