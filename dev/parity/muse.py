"""swj0419/muse_bench: verbatim and knowledge memorization, membership scores, PrivLeak."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from dev.parity import published
from dev.parity.golden import EXACT, LOSS, MODELS, TEXT, Comparison, Golden, compare, mean
from expunge.data.tokenize import TokenizedExample
from expunge.evaluation.metrics import attacks
from expunge.evaluation.metrics.aggregate import privleak
from expunge.evaluation.metrics.generations import cut_at, rouge, verbatim_memorization
from expunge.utils.roc import auc

COMPAT = "muse"
SETS = {
    "verbmem_forget": ("verbatim_memorization", "verbmem_f"),
    "knowmem_forget": ("knowledge_memorization", "knowmem_f"),
    "knowmem_retain": ("knowledge_memorization", "knowmem_r"),
}
"""Set -> metric, name of its mean among the final numbers, which are in percent."""
MIN_K = 5e-5
STOPS = ("\n\n", "\nQuestion", "Question:")
SCORE = {
    "rougeL": "rouge_l_f1",
    "rougeL_recall": "rouge_l_recall",
    "rouge1": "rouge_1_f1",
    "rouge1_recall": "rouge_1_recall",
}
METRIC = {"PPL": "loss", "PPL/lower": "lowercase", "PPL/zlib": "zlib"}


def comparisons(golden: Golden) -> Iterator[Comparison]:
    """All of them."""
    stored = golden.read("muse")
    settings = stored["settings"]
    for model in MODELS:
        results = stored[model]
        for name, (metric, final) in SETS.items():
            limit = settings[f"{name.partition('_')[0]}_max_new_tokens"]
            means = [results[f"eval_model_with_{corpus}_retrain_auc"][final] for corpus in settings["retrain_auc_used"]]
            yield from _memorization(golden, model, metric, results[name], limit, means)
        yield from _leak(golden, model, results, settings["retrain_auc_used"])


def _memorization(
    golden: Golden, model: str, metric: str, stored: dict[str, Any], limit: int, means: list[float]
) -> Iterator[Comparison]:
    rows = stored["per_sample"]
    if metric == "verbatim_memorization":
        prompts, stops = [row["prompt"] for row in rows], ()
    else:
        shots = "".join(f"Question: {shot['question']}\nAnswer: {shot['answer']}\n\n" for shot in golden.data["icl"])
        prompts, stops = [f"{shots}Question: {row['question']}\nAnswer: " for row in rows], STOPS
        yield Comparison("prompt", "", prompts[0] == stored["first_prompt"], 1, 0)
    said = [cut_at(text, stops) for text in golden.answers(model, prompts, limit)]
    yield from compare(
        "generated text", [text == row["response"] for text, row in zip(said, rows, strict=True)], [1] * len(rows), 0
    )
    scores = [rouge(text, row["gt"], stem=False) for text, row in zip(said, rows, strict=True)]
    for key, name in SCORE.items():
        column = [score[name] for score in scores]
        yield from compare(name, column, [row[key] for row in rows], TEXT)
        yield from compare(name, [mean(column)], [stored["aggregate"][f"mean_{key}"]], TEXT)
    ours = [verbatim_memorization(text, row["gt"]) for text, row in zip(said, rows, strict=True)]
    yield from compare(metric, ours, [row["rougeL"] for row in rows], TEXT)
    yield from compare(metric, [100 * mean(ours)] * len(means), means, TEXT)


def _leak(golden: Golden, model: str, results: dict[str, Any], retrained: dict[str, float]) -> Iterator[Comparison]:
    scores: dict[str, list[dict[str, float]]] = {}
    for split, samples in results["privleak"]["per_sample"].items():
        texts = [row["text"] for row in golden.data["documents"][split]]
        records = golden.records(model, golden.documents(split))
        lowered = [TokenizedExample(split, golden.encode(text.lower()), 0) for text in texts]
        scores[split] = [
            {
                "PPL": -attacks.loss(record),
                "PPL/lower": -(attacks.lowercase(record, other) or 0),
                "PPL/zlib": -attacks.zlib(record, text),
                **{
                    name: published.muse_min_k(record, int(name[4:-1]) / 100)
                    for name in samples[0]
                    if name.startswith("Min-")
                },
            }
            for record, other, text in zip(records, golden.records(model, lowered), texts, strict=True)
        ]
        for name in samples[0]:
            tolerance = MIN_K if name.startswith("Min-") else LOSS
            yield from compare(
                METRIC.get(name, "min_k"),
                [row[name] for row in scores[split]],
                [row[name] for row in samples],
                tolerance,
                compat=COMPAT,
            )
    areas = {}
    for pair, stored in results["privleak"]["auc"].items():
        first, second, name = pair.split("_")
        # Our scores grow with membership, theirs are losses; the second split stands for the members.
        sides = [-np.array([row[name] for row in scores[split]]) for split in (second, first)]
        areas[pair] = auc(*sides)
        yield from compare("auc", [areas[pair]], [stored], EXACT)
    for corpus, theirs in retrained.items():
        recognised = 1 - areas["forget_holdout_Min-40%"]
        stored = results[f"eval_model_with_{corpus}_retrain_auc"]
        yield from compare("privleak", [privleak(recognised, 1 - theirs)], [stored["privleak"]], EXACT)
