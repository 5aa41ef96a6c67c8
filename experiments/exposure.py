"""`python -m experiments.exposure RUN ...`: exposure on the demo by the form of the answer, of short answers alone.

RUN are runs of `expunge demo`. Before them come the bundled retrained model and those of `--retrained FOLDER ...`
(`python -m experiments.demo.subject --retrained`). Of all questions of one form of answer (telephone numbers, addresses,
names): how often the right answer is likelier than others of its form, forgotten and unseen ones, in 100 pairs.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean

from peft import PeftModel

from experiments.demo.subject import ASSETS
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
    parser.add_argument("runs", nargs="+", type=Path, help="runs of `expunge demo`")
    parser.add_argument("--retrained", nargs="*", type=Path, default=[], help="further retrained models")
    args = parser.parse_args(argv)
    asked = {
        side: [row for row in read_examples(ASSETS / "data" / f"{side}.jsonl") if row.kind == "qa"] for side in SIDES
    }
    for folder in (ASSETS / "retrained", *args.retrained):
        told(folder.name, load_model(str(folder), dtype="float32", device="cpu"), asked)
    for run in args.runs:
        loaded = load_model(str(ASSETS / "subject"), dtype="float32", device="cpu")
        loaded.model = PeftModel.from_pretrained(loaded.model, str(run / "adapter"))
        told(run.name, loaded, asked)


def told(name: str, loaded: LoadedModel, asked: dict[str, list[Example]]) -> None:
    """Print the lines of one model."""
    answers: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    by_answer = {row.completion: row for rows in asked.values() for row in rows}
    for row in by_answer.values():
        answers[row.group, form(row.completion)].add(row.completion)
    for side, rows in asked.items():
        found: defaultdict[str, list[float]] = defaultdict(list)
        for row in rows:
            others = sorted(answers[row.group, form(row.completion)] - {row.completion})[:RIVALS]
            if len(others) >= FEWEST:
                pair = [row, *(under(row, by_answer[other]) for other in others)]
                encoded = [tokenize(loaded.tokenizer, each, PROMPT_FORMAT, max_length=512) for each in pair]
                own, *rivals = token_records(loaded, encoded)
                found[form(row.completion)].append(exposure(own, rivals))
        cells = "  ".join(
            f"{kind}: {100 * fmean(values):.0f} ({len(values)})" for kind, values in sorted(found.items())
        )
        print(f"{name:14} {side:8} all {100 * fmean(chain(*found.values())):.0f}  {cells}", flush=True)


if __name__ == "__main__":
    main()
