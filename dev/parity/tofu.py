"""locuslab/tofu: per-row logs of two models, both published utilities, forget quality."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from dev.parity import published
from dev.parity.golden import EXACT, LOSS, MODELS, TEXT, Comparison, Golden, compare, mean
from expunge.data.examples import Example
from expunge.data.tokenize import PromptFormat, TokenizedExample, tokenize
from expunge.evaluation.metrics.aggregate import forget_quality, model_utility
from expunge.evaluation.metrics.generations import rouge
from expunge.evaluation.metrics.memorization import mean_nll
from expunge.evaluation.metrics.truth_ratio import folded, normalized_probability, truth_ratio

FILES = {
    "Retain": ("eval_log.json", "retain"),
    "Forget": ("eval_log_forget.json", "forget"),
    "Real Authors": ("eval_real_author_wo_options.json", "ra"),
    "Real World": ("eval_real_world_wo_options.json", "wf"),
}
"""Set -> file of its logs, rows of the data."""
STATISTIC = {"ROUGE": "{} ROUGE", "Probability": "{} Probability", "Truth Ratio": "{} Truth Ratio"}
STATISTIC_2 = {"ROUGE": "ROUGE {}", "Probability": "Prob. {}", "Truth Ratio": "Truth Ratio {}"}
METRIC = {"ROUGE": "rouge_l_recall", "Truth Ratio": "retain_truth_ratio", "Probability": "probability"}
Logs = Mapping[str, Mapping[str, Mapping[str, Any]]]


def comparisons(golden: Golden) -> Iterator[Comparison]:
    """All of them."""
    stored = golden.read("tofu")
    settings = stored["settings"]
    first = _asked(golden, golden.data["qa"]["forget"][0], golden.data["qa"]["forget"][0]["answer"])
    item = stored["first_forget_item"]
    labels = [label for label in item["labels"] if label != -100]
    yield Comparison("tokenization", "", first.input_ids[first.completion_start :] == labels, 1, 0)
    ids = item["input_ids"][: sum(item["attention_mask"]) + 1]  # they do not attend to the end token, which is a label
    yield Comparison("tokenization", "", first.input_ids == ids, 1, 0)
    logs: dict[str, dict[str, dict[str, Any]]] = {}
    for model in MODELS:
        logs[model] = {}
        for file, rows in FILES.values():
            logs[model][file], found = _log(
                golden, model, golden.data["qa"][rows], stored[model]["logs"][file], settings
            )
            yield from found
        yield from utilities(logs[model], stored[model], LOSS)
        yield from utilities(stored[model]["logs"], stored[model], EXACT)
    stored_quality = stored["forget_quality_fitted_against_random"]["Forget Quality"]
    for source in (logs, {model: stored[model]["logs"] for model in MODELS}):
        ours = quality(source["fitted"], source["random"])
        yield from compare("forget_quality", [ours], [stored_quality], EXACT, compat="tofu")


def utilities(logs: Logs, stored: Mapping[str, Mapping[str, float]], tolerance: float) -> Iterator[Comparison]:
    """Both published utilities and their terms, of one model's logs."""
    for key, names, compat in (
        ("model_utility_utils", STATISTIC, None),
        ("model_utility_aggregate_eval_stat", STATISTIC_2, "tofu"),
    ):
        terms = []
        for name, (file, _) in FILES.items():
            stats = _statistics(logs[file], name, compat)
            for kind, value in stats.items():
                metric = "forget_truth_ratio" if (name, kind) == ("Forget", "Truth Ratio") else METRIC[kind]
                golden = [stored[key][names[kind].format(name)]]
                bound = min(TEXT, tolerance) if kind == "ROUGE" else tolerance
                yield from compare(metric, [value], golden, bound, compat=compat or "")
            if name != "Forget":
                terms += stats.values()
        yield from compare(
            "model_utility", [model_utility(terms)], [stored[key]["Model Utility"]], tolerance, compat=compat or ""
        )


def quality(unlearned: Logs, retrained: Logs) -> float:
    """Forget quality of one model's logs against another's."""
    file = FILES["Forget"][0]
    return forget_quality(_ratios(unlearned[file], "tofu"), _ratios(retrained[file], "tofu"))


def _log(
    golden: Golden, model: str, rows: list[dict[str, Any]], stored: dict[str, Any], settings: dict[str, Any]
) -> tuple[dict[str, Any], list[Comparison]]:
    """Our log of one set in the published layout, and its comparisons with the published one."""
    order = [str(i) for i in range(len(rows))]
    correct = "paraphrased_answer" if stored["avg_paraphrased_loss"] != stored["avg_gt_loss"] else "answer"
    found: list[Comparison] = []

    def losses(field: str, names: tuple[str, str, str]) -> list[Any]:
        per_row = []
        several = [row[field] if isinstance(row[field], list) else [row[field]] for row in rows]
        asked = [_asked(golden, row, answer) for row, answers in zip(rows, several, strict=True) for answer in answers]
        flat = iter(golden.records(model, asked))
        for i, row, answers in zip(order, rows, several, strict=True):
            records = [next(flat) for _ in answers]
            means = [mean_nll(record) for record in records]
            for key, ours, tolerance in (
                (names[0], means, LOSS),
                (names[1], [loss * len(record) for loss, record in zip(means, records, strict=True)], 1e-5),
                (names[2], [len(record) for record in records], 0),
            ):
                theirs = stored[key][i] if isinstance(stored[key][i], list) else [stored[key][i]]
                found.extend(compare("mean_nll", ours, theirs, tolerance, relative=key == names[1]))
            per_row.append(means if isinstance(row[field], list) else means[0])
        return per_row

    answer = losses("answer", ("avg_gt_loss", "gt_loss", "num_token_gt"))
    right = losses(correct, ("avg_paraphrased_loss", "paraphrased_loss", "num_token_paraphrased"))
    wrong = losses("perturbed_answer", ("average_perturb_loss", "perturb_loss", "num_token_perturb"))
    ratios = [published.truth_ratio(c, w) for c, w in zip(right, wrong, strict=True)]
    stored_ratios = [stored["truth_ratio"][i] for i in order]
    found += compare("truth_ratio", ratios, stored_ratios, LOSS, compat="tofu", relative=True)
    if "normalized_gt_loss" in stored:
        shares = [-math.log(normalized_probability(a, w)) for a, w in zip(answer, wrong, strict=True)]
        found += compare("normalized_probability", shares, [stored["normalized_gt_loss"][i] for i in order], LOSS)
    prompts = [f"Question: {row['question']}\n" for row in rows]
    said = golden.answers(model, prompts, settings["max_new_tokens"])
    triples = [stored["generated_text"][i] for i in order]
    found += compare("generated text", [a == b[1] for a, b in zip(said, triples, strict=True)], [1] * len(rows), 0)
    scores = [rouge(text, row["answer"]) for text, row in zip(said, rows, strict=True)]
    for key, name in (("rouge1_recall", "rouge_1_recall"), ("rougeL_recall", "rouge_l_recall")):
        found += compare(name, [score[name] for score in scores], [stored[key][i] for i in order], TEXT)
    log = {
        "avg_gt_loss": answer,
        "avg_paraphrased_loss": right,
        "average_perturb_loss": wrong,
        "rougeL_recall": [score["rouge_l_recall"] for score in scores],
    }
    return {key: dict(zip(order, column, strict=True)) for key, column in log.items()}, found


def _asked(golden: Golden, row: dict[str, Any], answer: str) -> TokenizedExample:
    """The published encoding: the tag before the answer is not masked."""
    example = Example(row["id"], f"Question: {row['question']}\n", f"Answer: {answer}")
    return tokenize(golden.models["fitted"].tokenizer, example, PromptFormat("none", True), max_length=4096)


def _statistics(log: Mapping[str, Mapping[str, Any]], name: str, compat: str | None) -> dict[str, float]:
    answer, wrong = list(log["avg_gt_loss"].values()), list(log["average_perturb_loss"].values())
    if name in ("Real Authors", "Real World"):
        shares = [normalized_probability(a, w) for a, w in zip(answer, wrong, strict=True)]
    else:
        shares = [math.exp(-loss) for loss in answer]
    row = folded if name == "Forget" else lambda ratio: max(0.0, 1 - ratio)
    return {
        "ROUGE": mean(log["rougeL_recall"].values()),
        "Probability": mean(shares),
        "Truth Ratio": mean(map(row, _ratios(log, compat))),
    }


def _ratios(log: Mapping[str, Mapping[str, Any]], compat: str | None) -> list[float]:
    pairs = zip(log["avg_paraphrased_loss"].values(), log["average_perturb_loss"].values(), strict=True)
    ratio = published.truth_ratio if compat else truth_ratio
    return [ratio(correct, wrong) for correct, wrong in pairs]
