"""`python -m experiments.targets`: what each kind of target would say of a retrained model, which is what forgetting should come to.

    python -m experiments.targets --output FOLDER [--subjects demo olmo] [--taught FOLDER] [--docs]

Without a retrained model a metric of the forget set has its target from elsewhere: the same metric of texts that were
never seen, of the checkpoint from before (--origin), or of the same answers under other prompts (the mismatched
floor). Here each is measured on models retrained without the forget set, which nobody can be asked to do better than.
A cell is what the target is, and in brackets the share of the way from the subject to the target that is left of the retrained
model: the verdict calls a metric forgotten up to a tenth, so a target with more left would call the retrained model a
failure, and one with much less than 0 would accept a model that still knows the texts. Results stay in FOLDER and are not made again.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers import AutoTokenizer

from bench.report import DOCS, show, table
from experiments.demo.subject import SEED, shared_start
from experiments.scoring import Subject, subject_arguments, subject_of
from expunge import EvaluateConfig, evaluate
from expunge.data.examples import Example, read_examples
from expunge.data.lume import read_lume
from expunge.evaluation.mismatched import SUFFIX, floored
from expunge.evaluation.results import read_results
from expunge.evaluation.suite import write_key_words

METRICS = floored(
    (
        "exact_memorization",
        "extraction_strength",
        "probability",
        "rouge_l_recall",
        "rouge_1_recall",
        "exact_match",
        "key_fact",
    )
)
"""What is known of a text, as the verdict judges it."""
LEAST = 0.02
"""A metric on which the subject is closer to the retrained model than this has nothing to lose."""
HEADER = ("subject", "metric", "subject's value", "retrained model's", "unseen texts", "mismatched floor", "origin")


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    args = _arguments().parse_args(argv)
    rows = [
        row for name in args.subjects for row in targets(name, subject_of(name, args.taught), Path(args.output) / name)
    ]
    show(table(HEADER, rows), DOCS / "evaluation.md", "targets", docs=args.docs)


def targets(name: str, subject: Subject, folder: Path) -> Iterator[list[str]]:
    """A row for each metric."""
    folder.mkdir(parents=True, exist_ok=True)
    data = read_lume(subject.data, subject.split)
    unseen = subject.data / "holdout.jsonl"
    sets = {"forget": data.forget} | ({"unseen": read_examples(unseen)} if unseen.is_file() else {})
    models = {"subject": subject.model, "retrained": subject.retrained}
    origin = _origin(folder / "origin", subject) if name == "demo" else subject.model.with_name("origin")
    if origin.is_dir():
        models["origin"] = origin
    known = {
        (model, part): _values(models[model], part, sets[part], folder / f"{model}-{part}.json")
        for model, part in (
            ("subject", "forget"),
            ("retrained", "forget"),
            ("retrained", "unseen"),
            ("origin", "forget"),
        )
        if model in models and part in sets
    }
    for metric in METRICS:
        before, after = (known[model, "forget"].get(metric) for model in ("subject", "retrained"))
        if before is None or after is None or before - after < LEAST:
            continue
        found = (
            known.get(("retrained", "unseen"), {}).get(metric),
            known["retrained", "forget"].get(metric + SUFFIX),
            known.get(("origin", "forget"), {}).get(metric),
        )
        yield [name, metric, f"{before:.3f}", f"{after:.3f}", *(_cell(before, after, target) for target in found)]


def _origin(folder: Path, subject: Subject) -> Path:
    """The checkpoint of the demo's subject from before it saw any set, made again."""
    if not (folder / "config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(subject.model)
        shared_start(tokenizer, SEED).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def _cell(before: float, after: float, target: float | None) -> str:
    """The target and what is left of the way to it."""
    if target is None:
        return ""
    return f"{target:.3f} ({(after - target) / (before - target):+.0%})" if before > target else f"{target:.3f} (never)"


def _values(model: Path, part: str, rows: Sequence[Example], file: Path) -> dict[str, float]:
    """Metric -> its mean over the rows, as rows to forget."""
    if not file.exists():
        texts = file.with_name(f"{part}.jsonl")
        texts.unlink(missing_ok=True)
        write_key_words(str(texts), rows)
        evaluate(
            EvaluateConfig(model=str(model), benchmark="custom", forget=str(texts), max_new_tokens=64, output=str(file))
        )
    metrics = read_results(file)["metrics"]
    wanted = {key for name in METRICS for key in (name, name + SUFFIX)}
    return {
        name: metrics[f"forget/{name}"]["value"]
        for name in wanted
        if metrics.get(f"forget/{name}", {}).get("value") is not None
    }


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.targets", description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="folder of the results")
    parser.add_argument("--docs", action="store_true", help="also write the table into docs/evaluation.md")
    subject_arguments(parser)
    return parser


if __name__ == "__main__":
    main()
