"""`python -m experiments.halves`: how far the half of the documents that a run is stopped by is from the half that is reported.

    python -m experiments.halves --subjects neox --taught TAUGHT

A retrained model has never seen the forget set, so its membership AUC is what a run should come to. It is another on
each half of the documents that are long enough: printed is the root mean square of the difference
over a hundred splits, of halves by hash alone and of halves whose texts are paired by surprise (`expunge.data.holdout`), with
the correlation of surprise and the retrained model's loss on either side.
"""

import argparse
import hashlib
import math
from itertools import compress
from statistics import correlation, fmean

from experiments.scoring import documents_of, subject_arguments, subject_of
from expunge.data.holdout import Side, selection_half
from expunge.data.lume import read_lume
from expunge.data.surprise import surprises
from expunge.data.tokenize import PromptFormat, tokenize_all
from expunge.model.load import load_model
from expunge.model.logps import sequence_logps
from expunge.utils.roc import auc

SPLITS = 100


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    args = _arguments().parse_args(argv)
    print("| subject | documents | retrained model's AUC | by hash | paired | surprise and loss, forgotten | unseen |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in args.subjects:
        subject = subject_of(name, args.taught)
        found = read_lume(subject.data, subject.split)
        sides = documents_of(found)
        texts = [side.texts for side in sides]
        loaded = load_model(str(subject.retrained), dtype="float32", device="cpu")
        losses = []
        for side in texts:
            rows = tokenize_all(
                loaded.tokenizer, side, PromptFormat("space", False), max_length=512, truncate_completions=True
            )
            losses.append([-logps.mean().item() for logps in sequence_logps(loaded, [row.input_ids for row in rows])])
        hard = surprises(loaded.tokenizer, found.retain, texts)
        level = [[0.0] * len(side) for side in texts]
        cells = [
            name,
            f"{len(texts[0])} + {len(texts[1])}",
            f"{_auc(losses):.2f}",
            *(f"{_gap(sides, losses, surprise):.3f}" for surprise in (level, hard)),
            *(f"{correlation(surprise, loss):.2f}" for surprise, loss in zip(hard, losses, strict=True)),
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def _gap(sides: list[Side], losses: list[list[float]], surprise: list[list[float]]) -> float:
    """Root mean square over splits of the difference of both halves' AUCs."""
    squares = []
    for salt in range(SPLITS):
        halves: tuple[list[list[float]], list[list[float]]] = ([], [])
        for side, values, expected in zip(sides, losses, surprise, strict=True):
            hashes = [hashlib.sha256(f"{salt} {row.completion}".encode()).hexdigest() for row in side.texts]
            chosen = selection_half(hashes, [text.group for text in side.texts], expected, side.family)
            halves[0].append(list(compress(values, chosen)))
            halves[1].append(list(compress(values, (not at for at in chosen))))
        squares.append((_auc(halves[0]) - _auc(halves[1])) ** 2)
    return math.sqrt(fmean(squares))


def _auc(losses: list[list[float]]) -> float:
    return auc(*([-loss for loss in side] for side in losses))


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.halves", description=__doc__.splitlines()[0])
    subject_arguments(parser)
    return parser


if __name__ == "__main__":
    main()
