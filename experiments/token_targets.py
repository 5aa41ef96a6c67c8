"""`python -m experiments.token_targets --subjects demo olmo smollm2`: how near target NLLs come to a retrained model's, token by token.

Nobody who unlearns has the retrained model; here it is the judge. For each sign that `expunge.train.targets` goes by, left
out or taken in, the table has, over all tokens of the forget texts: the mean target NLL beside the retrained model's mean,
the mean divergence KL(t || r) of "this token or another" in nats (t by the target, r by the retrained model), Spearman's
correlation of both NLLs, and the distance of the means in the kinds of text, weighted by their tokens. Only the model is
run, nothing is trained. With `--origin FOLDER ...` (models with the subject's tokenizer that never saw the forget texts): the
NLLs of each of them, as they are and times the ratio of the model's NLL over theirs on unseen texts, on texts that the
model writes, and on those to keep.
"""

import argparse
import math
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from experiments.scoring import Subject, subject_arguments, subject_of
from expunge import UnlearnConfig
from expunge.model.load import LoadedModel, load_model
from expunge.model.logps import sequence_logps
from expunge.model.replay import write_texts
from expunge.train.setup import Prepared, prepare
from expunge.train.targets import UnseenTokens, at_most_surprise, like_unseen, nll_ratio, of_their_form, unseen_nlls
from expunge.utils.progress import Reporter

Values = list[list[float]]
WRITTEN = 4_000
"""Tokens of the model's own texts."""


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    args = _arguments().parse_args(argv)
    print("| subject | order by | mean target | retrained | divergence | correlation | kinds apart |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for name in args.subjects:
        subject = subject_of(name, args.taught)
        run = prepared(subject)
        retrained = load_model(str(subject.retrained), dtype="float32", device="cpu")
        truth = nlls([row.input_ids for row in run.forget], retrained)
        found = targets(run)
        for folder in args.origin:
            found |= by_origin(run, folder)
        for label, values in found.items():
            cells = (f"{number:.3f}" for number in compared(run, values, truth))
            print(f"| {name} | {label} | {' | '.join(cells)} |", flush=True)


def prepared(subject: Subject) -> Prepared:
    """The texts of a run on the subject, as `expunge unlearn` would read them."""
    texts = (
        {side: str(subject.data / f"{side}.jsonl") for side in ("forget", "retain", "holdout")}
        if (subject.data / "holdout.jsonl").is_file()
        else {"benchmark": "semeval", "data": str(subject.data), "split": subject.split}
    )
    with tempfile.TemporaryDirectory() as folder:
        config = UnlearnConfig(
            recipe="default", model=str(subject.model), output=str(Path(folder) / "run"), dtype="float32", device="cpu",
            retain_test=0.0, **texts,
        )  # fmt: skip
        return prepare(config, Reporter(quiet=True))


def targets(run: Prepared) -> dict[str, Values]:
    """Label -> target NLLs of the forget rows, from fewer or more of the signs."""
    forget, unseen = like_unseen(run), run.selection.unseen if run.selection else []
    before, theirs = (nlls([row.input_ids for row in rows], run.loaded) for rows in (forget, unseen))
    tokens = UnseenTokens(unseen, theirs)
    guesses, among = [tokens.expected(row) for row in forget], tokens.expected_by_the_others()
    kept = at_most_surprise(forget, guesses, run.retain), at_most_surprise(unseen, among, run.retain)
    level = [[0.0] * len(row.input_ids) for row in forget]
    alike, of_kinds = of_their_form(forget, unseen, run.loaded.tokenizer)
    known = [(row, kept[1][at], theirs[at]) for at, row in of_kinds]
    return {
        "unseen texts": unseen_nlls(forget, guesses, level, unseen, among, theirs),
        "and texts to keep": unseen_nlls(forget, kept[0], level, unseen, kept[1], theirs),
        "and the NLL before": unseen_nlls(forget, kept[0], before, unseen, kept[1], theirs),
        "and answers of a form by themselves": unseen_nlls(alike, kept[0], before, *zip(*known, strict=True)),
    }


def by_origin(run: Prepared, folder: Path) -> dict[str, Values]:
    """Label -> target NLLs of the forget rows by a model that never saw them, at several ratios."""
    origin = load_model(str(folder), dtype="float32", device="cpu")
    written = write_texts(run.loaded, run.forget, run.retain, tokens=WRITTEN, seed=0)
    unseen = run.selection.unseen if run.selection else []
    found = nlls([row.input_ids for row in run.forget], origin)
    ratios = {"as they are": 1.0}
    for label, rows, span in (
        ("unseen texts", unseen, "all"),
        ("its own texts", written, "completion"),
        ("texts to keep", run.retain, "all"),
    ):
        sides = (sequence_logps(model, [row.input_ids for row in rows]) for model in (run.loaded, origin))
        ratios[f"times the ratio on {label}"] = nll_ratio(
            *([logps[row.targets(span).start - 1 :] for row, logps in zip(rows, side, strict=True)] for side in sides)
        )
    return {
        f"{folder.name}'s, {label} ({ratio:.3f})": [[ratio * nll for nll in values] for values in found]
        for label, ratio in ratios.items()
    }


def compared(run: Prepared, found: Values, truth: Values) -> tuple[float, float, float, float, float]:
    """The numbers of a line."""
    kinds: defaultdict[tuple[str, bool], list[tuple[float, float]]] = defaultdict(list)
    for row, values, right in zip(run.forget, found, truth, strict=True):
        for at in range(1, len(values)):
            kinds[row.group, at >= row.completion_start].append((values[at], right[at]))
    pairs = [pair for of_kind in kinds.values() for pair in of_kind]
    means = [fmean(side) for side in zip(*pairs, strict=True)]
    apart = sum(abs(math.fsum(nll - right for nll, right in pair)) for pair in kinds.values()) / len(pairs)
    ranks = [np.argsort(np.argsort(side)) for side in zip(*pairs, strict=True)]
    return *means, fmean(divergence(*pair) for pair in pairs), float(np.corrcoef(*ranks)[0, 1]), apart


def divergence(target: float, right: float) -> float:
    """KL between two distributions over a token and all others, that give it these NLLs; nats."""
    t, r = (min(max(math.exp(-nll), 1e-6), 1 - 1e-6) for nll in (target, right))
    return t * math.log(t / r) + (1 - t) * math.log((1 - t) / (1 - r))


def nlls(ids: Sequence[Sequence[int]], model: LoadedModel) -> Values:
    """The model's NLL of every token, of the first one 0."""
    return [[0.0, *(-logps).tolist()] for logps in sequence_logps(model, ids)]


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.token_targets", description=__doc__.splitlines()[0])
    subject_arguments(parser)
    parser.add_argument("--origin", nargs="*", type=Path, default=[], help="models that never saw the forget texts")
    return parser


if __name__ == "__main__":
    main()
