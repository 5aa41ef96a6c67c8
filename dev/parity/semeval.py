"""The organisers of SemEval-2025 Task 4: losses of answers and documents (`tests/parity` has texts and scores)."""

from collections.abc import Iterator
from statistics import harmonic_mean

from dev.parity.golden import LOSS, MODELS, Comparison, Golden, compare
from expunge.data.tokenize import TokenizedExample
from expunge.evaluation.metrics.generations import exact_match, rouge
from expunge.evaluation.metrics.memorization import mean_nll
from expunge.utils.roc import auc


def comparisons(golden: Golden) -> Iterator[Comparison]:
    """All of them."""
    stored = golden.read("semeval_inference")
    for model in MODELS:
        results = stored[model]
        for split in ("forget", "retain"):
            rows = [
                TokenizedExample(item["id"], item["joint_ids"], len(item["prompt_ids"]))
                for item in stored["tokenised"][split]
            ]
            losses = [mean_nll(record) for record in golden.records(model, rows)]
            yield from compare("mean_nll", losses, [row["nll"] for row in results[split]], LOSS)
            references = {row["id"]: row["output"] for row in golden.data["semeval"][split]}
            for kind, key, metric in (
                ("sc", "overall-regurgitation-score", "rouge_l_recall"),
                ("qa", "overall-knowledge-score", "exact_match"),
            ):
                pairs = [
                    (row["model_output"], references[row["id"]])
                    for row in results[split]
                    if row["id"][:-1].endswith(kind)
                ]
                if results[f"{split}_csv_rows_read_back"] == len(rows):  # else their file lost a row
                    scores = [rouge(*pair)[metric] if kind == "sc" else exact_match(*pair) for pair in pairs]
                    theirs = results["results"][f"{split}-set"][key]
                    yield from compare(metric, [sum(scores) / len(scores)], [theirs], 1e-12)
        sides = {}
        for side in ("member", "nonmember"):
            texts = [row["document"] for row in golden.data["semeval_mia"][side]]
            rows = [TokenizedExample(f"{side}{i}", golden.encode(text), 0) for i, text in enumerate(texts)]
            sides[side] = [mean_nll(record) for record in golden.records(model, rows)]
            yield from compare("mean_nll", sides[side], [row["nll"] for row in results[side]], LOSS)
        area = auc([-loss for loss in sides["member"]], [-loss for loss in sides["nonmember"]])
        yield from compare("auc", [area], [results["results"]["mia_loss_acc"]], 1e-12)
        terms = results["results"]["aggregated-terms"]
        theirs = results["results"]["harmonic-mean-task-aggregate"]
        yield from compare("harmonic_mean", [harmonic_mean(terms)], [theirs], 1e-12)
