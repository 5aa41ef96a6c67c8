"""`python -m experiments.exposure RUN ...`: exposure by the form of the answer, of short answers alone.

RUN are runs of `expunge demo`, or with `--subject smollm2` on that of `experiments.real`. Before them come the retrained
model and those of `--retrained FOLDER ...` (`python -m experiments.demo.subject --retrained`). Of all questions of one form
of answer (telephone numbers, addresses, names): how often the right answer is likelier than others of its form, forgotten
and unseen ones, in 100 pairs, and how many nats it costs.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean

from peft import PeftModel

from experiments.real import SUBJECTS as REAL
from experiments.scoring import SUBJECTS
from expunge.data.examples import Example, read_examples
from expunge.data.kinds import form
from expunge.data.tokenize import tokenize
from expunge.demo.teach import PROMPT_FORMAT
from expunge.evaluation.metrics.exposure import exposure
from expunge.evaluation.mismatched import under
from expunge.evaluation.rivals import FEWEST
from expunge.evaluation.teacher_forcing import token_records
from expunge.model.load import LoadedModel, load_model

SIDES = ("forget", "holdout")
RIVALS = 20
"""Others of a form at most, in their order."""


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each model and side."""
    parser = argparse.ArgumentParser(prog="python -m experiments.exposure", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="runs on the subject")
    parser.add_argument("--subject", choices=("demo", *REAL), default="demo", help="by default the demo's")
    parser.add_argument("--retrained", nargs="*", type=Path, default=[], help="further retrained models")
    args = parser.parse_args(argv)
    subject = SUBJECTS[args.subject]
    asked = {side: [row for row in read_examples(subject.data / f"{side}.jsonl") if row.kind == "qa"] for side in SIDES}
    for folder in (subject.retrained, *args.retrained):
        told(folder.name, load_model(str(folder), dtype="float32", device="cpu"), asked)
    for run in args.runs:
        loaded = load_model(str(subject.model), dtype="float32", device="cpu")
        loaded.model = PeftModel.from_pretrained(loaded.model, str(run / "adapter"))
        told(run.name, loaded, asked)


def told(name: str, loaded: LoadedModel, asked: dict[str, list[Example]]) -> None:
    """Print the lines of one model."""
    answers: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    by_answer = {row.completion: row for rows in asked.values() for row in rows}
    for row in by_answer.values():
        answers[row.group, form(row.completion)].add(row.completion)
    for side, rows in asked.items():
        found: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        for row in rows:
            others = sorted(answers[row.group, form(row.completion)] - {row.completion})[:RIVALS]
            if len(others) >= FEWEST:
                pair = [row, *(under(row, by_answer[other]) for other in others)]
                encoded = [tokenize(loaded.tokenizer, each, PROMPT_FORMAT, max_length=512) for each in pair]
                own, *rivals = token_records(loaded, encoded)
                found[form(row.completion)].append((exposure(own, rivals), -float(own.logps.sum())))
        cells = "  ".join(
            f"{kind}: {100 * shares:.0f}, {nats:.1f} nats ({len(values)})"
            for kind, values in sorted(found.items())
            for shares, nats in [map(fmean, zip(*values, strict=True))]
        )
        every = fmean(share for share, _ in chain(*found.values()))
        print(f"{name:14} {side:8} all {100 * every:.0f}  {cells}", flush=True)


if __name__ == "__main__":
    main()
