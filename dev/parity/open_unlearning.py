"""locuslab/open-unlearning: memorization, truth ratio, utility, ROUGE and membership metrics on two models."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from dev.parity import published
from dev.parity.golden import EXACT, LOSS, MODELS, TEXT, Comparison, Golden, compare, mean, values
from expunge.data.examples import Example
from expunge.data.tokenize import PromptFormat, TokenizedExample, tokenize
from expunge.evaluation.metrics import TokenRecord, attacks
from expunge.evaluation.metrics.aggregate import forget_quality, model_utility
from expunge.evaluation.metrics.generations import cut_at, rouge
from expunge.evaluation.metrics.memorization import mean_nll, probability
from expunge.utils.roc import auc

COMPAT = "open-unlearning"
MIN_K, MIN_K_PLUS_PLUS, GRADIENT = 5e-5, 2e-4, 1e-3
"""Tolerances; that of gradient norms is relative."""
ORDERS = {"1": 1.0, "2": 2.0, "inf": math.inf}
SETS = ("forget", "retain", "ra", "wf")
SCORE = {"rougeL_recall": "rouge_l_recall", "rougeL_f1": "rouge_l_f1", "rouge1_recall": "rouge_1_recall"}


def comparisons(golden: Golden) -> Iterator[Comparison]:
    """All of them."""
    stored = golden.read("open_unlearning")
    ratios: dict[str, list[float]] = {}
    aucs: dict[tuple[str, str], float] = {}
    for model in MODELS:
        results = stored["models"][model]
        yield from _texts(golden, model, results, stored["settings"])
        yield from _matches(golden, model, results, stored["tokenised"])
        yield from _probabilities(golden, model, results, ratios)
        for kind in ("qa", "documents"):
            yield from _attacks(golden, model, kind, stored, aucs)
    p_value = forget_quality(ratios["fitted"], ratios["random"])
    yield from compare(
        "forget_quality", [p_value], [stored["forget_quality_fitted_against_random"]["agg_value"]], EXACT
    )
    for kind, numbers in stored["privleak"].items():
        fitted, random = aucs["fitted", kind], aucs["random", kind]
        yield from compare("auc", [fitted, random], [numbers["auc_fitted"], numbers["auc_random"]], EXACT)
        golden_values = [numbers["privleak_default_reference_0.5"], numbers["privleak_against_random"]]
        ours = [published.privleak(fitted, 0.5), published.privleak(fitted, random)]
        yield from compare("privleak", ours, golden_values, EXACT, compat=COMPAT)
    tokens = stored["fitted_qa_forget_tokenwise"]
    for record, item in zip(
        golden.records("fitted", _labelled(stored["tokenised"]["qa"]["forget"])), tokens, strict=True
    ):
        yield from compare("token log-probability", record[:-1].logps, item["log_prob"], LOSS)


def _texts(golden: Golden, model: str, results: dict[str, Any], settings: dict[str, Any]) -> Iterator[Comparison]:
    for name in [key for key in results if key.endswith("_ROUGE")]:
        rows = results[name]["value_by_index"]
        knowledge = "knowmem" in name
        limit = settings["max_new_tokens_knowmem" if knowledge else "max_new_tokens"]
        stops = settings["stopwords_knowmem"] if knowledge else []
        said = [cut_at(text, stops).strip() for text in golden.answers(model, values(rows, "input"), limit)]
        yield from compare(
            "generated text",
            [a == b for a, b in zip(said, values(rows, "generation"), strict=True)],
            [1] * len(said),
            0,
        )
        scores = [rouge(text, truth) for text, truth in zip(said, values(rows, "ground_truth"), strict=True)]
        for key, ours in SCORE.items():
            yield from compare(ours, [score[ours] for score in scores], values(rows, key), TEXT)
        aggregate = SCORE["rougeL_f1" if "mem_" in name else "rougeL_recall"]
        yield from compare(aggregate, [mean(score[aggregate] for score in scores)], [results[name]["agg_value"]], TEXT)


def _matches(golden: Golden, model: str, results: dict[str, Any], tokenised: dict[str, Any]) -> Iterator[Comparison]:
    items = {
        "forget_qa": tokenised["qa"]["forget"],
        "retain_qa": tokenised["qa"]["retain"],
        "completion_forget": tokenised["completion_forget"],
    }
    theirs = {"exact_memorization": published.exact_match_share, "extraction_strength": published.extraction}
    for metric, function in theirs.items():
        for name, rows in items.items():
            table = results[f"{metric}.{name}"]
            scores = [function(record) for record in golden.records(model, _labelled(rows))]
            stored = values(table["value_by_index"], "score")
            yield from compare(metric, scores, stored, TEXT, compat=COMPAT)
            yield from compare(metric, [mean(scores)], [table["agg_value"]], TEXT, compat=COMPAT)


def _probabilities(
    golden: Golden, model: str, results: dict[str, Any], ratios: dict[str, list[float]]
) -> Iterator[Comparison]:
    terms = {}
    for name in SETS:
        rows = golden.data["qa"][name]
        losses: dict[str, list[list[float]]] = {}
        for kind, field in (("Prob", "answer"), ("PARA_Prob", "paraphrased_answer"), ("PERT_Prob", "perturbed_answer")):
            asked = [_asked(golden, row, row[field]) for row in rows]
            flat = iter(golden.records(model, [text for several in asked for text in several]))
            records = [[next(flat) for _ in several] for several in asked]
            losses[kind] = [[mean_nll(record) for record in several] for several in records]
            table = results[f"{name}_Q_A_{kind}"]
            stored = table["value_by_index"]
            yield from compare("mean_nll", _flat(losses[kind]), _flat(values(stored, "avg_loss")), LOSS)
            probabilities = [[probability(record) for record in several] for several in records]
            yield from compare("probability", _flat(probabilities), _flat(values(stored, "prob")), LOSS)
            yield from compare("probability", [mean(map(mean, probabilities))], [table["agg_value"]], LOSS)
        answers = [several[0] for several in losses["Prob"]]
        terms[f"{name}_Q_A_Prob"] = mean(map(math.exp, (-loss for loss in answers)))
        correct = [several[0] for several in losses["PARA_Prob" if name in ("forget", "retain") else "Prob"]]
        pairs = list(zip(correct, losses["PERT_Prob"], strict=True))
        row_ratios = [published.truth_ratio(right, wrong, published.EPSILON) for right, wrong in pairs]
        if name == "forget":
            ratios[model] = row_ratios
            aggregates = {
                "closer_to_1_better": ("forget_truth_ratio", [published.folded(r) for r in row_ratios]),
                "true_better": ("retain_truth_ratio", [max(0.0, 1 - r) for r in row_ratios]),
                "prob_mean": (
                    "truth_probability",
                    [published.truth_probability(right, wrong) for right, wrong in pairs],
                ),
            }
            for key, (metric, scores) in aggregates.items():
                table = results[f"forget_Truth_Ratio.{key}"]
                shown = scores if key == "prob_mean" else row_ratios
                stored = values(table["value_by_index"], "score")
                yield from compare("truth_ratio" if shown is row_ratios else metric, shown, stored, LOSS, compat=COMPAT)
                yield from compare(metric, [mean(scores)], [table["agg_value"]], LOSS, compat=COMPAT)
        else:
            table = results[f"{name}_Truth_Ratio"]
            terms[f"{name}_Truth_Ratio"] = mean(max(0.0, 1 - ratio) for ratio in row_ratios)
            stored = values(table["value_by_index"], "score")
            yield from compare("truth_ratio", row_ratios, stored, LOSS, compat=COMPAT)
            yield from compare(
                "retain_truth_ratio", [terms[f"{name}_Truth_Ratio"]], [table["agg_value"]], LOSS, compat=COMPAT
            )
        if name in ("ra", "wf"):
            table = results[f"{name}_Q_A_Prob_normalised"]
            shares = [published.normalized_probability(a, w) for a, w in zip(answers, losses["PERT_Prob"], strict=True)]
            stored = values(table["value_by_index"], "prob")
            yield from compare("normalized_probability", shares, stored, LOSS, compat=COMPAT)
            yield from compare("normalized_probability", [mean(shares)], [table["agg_value"]], LOSS, compat=COMPAT)
            terms[f"{name}_Q_A_Prob_normalised"] = mean(shares)
        terms[f"{name}_Q_A_ROUGE"] = results[f"{name}_Q_A_ROUGE"]["agg_value"]  # compared above
    stored_terms = results["model_utility"]["terms"]
    stored_value = results["model_utility"]["agg_value"]
    yield from compare("model_utility", [model_utility(list(stored_terms.values()))], [stored_value], EXACT)
    yield from compare("model_utility", [model_utility([terms[name] for name in stored_terms])], [stored_value], LOSS)


def _attacks(
    golden: Golden, model: str, kind: str, stored: dict[str, Any], aucs: dict[tuple[str, str], float]
) -> Iterator[Comparison]:
    tokenised = stored["tokenised"]
    sides = {
        side: _labelled(tokenised["qa"][side] if kind == "qa" else tokenised[f"documents_{side}"])
        for side in ("forget", "holdout")
    }
    records = {side: golden.records(model, rows) for side, rows in sides.items()}
    untrained = {side: golden.records("random", rows) for side, rows in sides.items()}
    for attack, table in stored["mia"][model][kind].items():
        metric, _, k = attack.rpartition("_")
        tolerance = {"min_k": MIN_K, "min_k_plus_plus": MIN_K_PLUS_PLUS, "gradnorm": GRADIENT}.get(metric, LOSS)
        name = {"gradnorm": "gradient_norm", "": attack}.get(metric, metric)
        members: dict[str, list[float]] = {}
        for side, rows in sides.items():
            scores: list[float] = []
            norms = [0.0] * len(rows)
            if metric == "gradnorm":
                norms = published.gradient_norms(golden.models[model], rows, ORDERS[k[1:]])
            for row, record, other, norm in zip(rows, records[side], untrained[side], norms, strict=True):
                text = golden.decode(row.input_ids[row.completion_start :])
                scores.append(_score(name, k, record, other, text, norm))
            members[side] = [-score for score in scores]
            golden_scores = values(table[side]["value_by_index"], "score")
            relative = metric == "gradnorm"
            yield from compare(name, scores, golden_scores, tolerance, compat=COMPAT, relative=relative)
            golden_mean = [table[side]["agg_value"]]
            yield from compare(name, [mean(scores)], golden_mean, tolerance, compat=COMPAT, relative=relative)
        area = auc(members["forget"], members["holdout"])
        yield from compare("auc", [area], [table["auc"]], EXACT)
        if attack == "min_k_0.4":
            aucs[model, kind] = area


def _score(name: str, k: str, record: TokenRecord, other: TokenRecord, text: str, norm: float) -> float:
    if name == "zlib":
        return -attacks.zlib(record, text)
    if name == "reference":
        return -attacks.reference(record, other)
    if name == "gradient_norm":
        return norm
    if name == "loss":
        return -attacks.loss(record)
    return {"min_k": published.min_k, "min_k_plus_plus": published.min_k_plus_plus}[name](record, float(k))


def _labelled(items: Sequence[dict[str, list[int]]]) -> list[TokenizedExample]:
    """Stored ids and labels as rows: the labels are the tail of each."""
    return [
        TokenizedExample(str(i), item["input_ids"], sum(label == -100 for label in item["labels"]))
        for i, item in enumerate(items)
    ]


def _asked(golden: Golden, row: dict[str, Any], answers: str | list[str]) -> list[TokenizedExample]:
    """The question with each answer, through our own tokenization."""
    prompt = f"Question: {row['question']}\nAnswer:\n"
    tokenizer = golden.models["fitted"].tokenizer
    several = answers if isinstance(answers, list) else [answers]
    return [
        tokenize(tokenizer, Example(row["id"], prompt, answer), PromptFormat("none", True), max_length=4096)
        for answer in several
    ]


def _flat(nested: Sequence[Any]) -> list[float]:
    return [number for item in nested for number in (item if isinstance(item, list) else [item])]
