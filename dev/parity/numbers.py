"""Number-level and string-level vectors: losses, logits, scores and texts as given."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import harmonic_mean
from typing import Any

import numpy as np
import torch

from dev.parity import published, tofu
from dev.parity.golden import EXACT, Comparison, Golden, compare, mean
from expunge.data.words import words
from expunge.evaluation.metrics import TokenRecord, attacks
from expunge.evaluation.metrics.aggregate import forget_quality, model_utility
from expunge.evaluation.metrics.generations import rouge
from expunge.evaluation.metrics.memorization import exact_memorization, extraction_strength, mean_nll, probability
from expunge.kernels import Head, token_stats
from expunge.utils.roc import auc

COMPAT = "open-unlearning"
FROM_FP32 = 2e-6
"""Relative tolerance of min-k and min-k++, whose inputs are fp32."""
IN_FP32 = 1e-6
"""Tolerance of losses, probabilities and shares of hits of the stored patterns, which the published code computes in
fp32: the largest loss is 5.4 nats, where fp32 has steps of 5e-7.
"""


def comparisons(golden: Golden) -> Iterator[Comparison]:
    """All of them."""
    stored = golden.read("aggregations")
    for case in stored["truth_ratio"]:
        yield from _truth_ratios(case)
    for case in stored["forget_quality_ks"]:
        yield from compare("forget_quality", [forget_quality(case["forget"], case["retain"])], [case["p_value"]], EXACT)
    for case in stored["hmean"]:
        for function in (harmonic_mean, model_utility):
            yield from compare(function.__name__, [function(case["values"])], [case["agg_value"]], EXACT)
    for case in stored["privleak"]:
        value, reference = case["auc_forget"], case["auc_reference"]
        beyond = reference == 1  # nothing but the published 1e-10 is left in the denominator
        leak, tolerance = published.privleak(value, reference), 1e-3 if beyond else EXACT
        yield from compare("privleak", [leak], [case["privleak"]], tolerance, compat=COMPAT, relative=True)
    for case in stored["mia_auc"]:
        sides = [-np.array(case[name]) for name in ("forget_scores", "holdout_scores")]
        yield from compare("auc", [auc(*sides)], [case["auc"]], EXACT)
    for case in stored["min_k"]:
        yield from _min_k(case)
    empty = record_of_logps([-1.0])  # the published code drops the last label, here the only one
    yield from compare("min_k", [published.min_k(empty, 0.4)], [stored["min_k_empty_sequence"]], 0, compat=COMPAT)
    for case in stored["zlib"]:
        score = -attacks.zlib(record_of_logps([-case["loss"]]), case["text"])
        yield from compare("zlib", [score], [case["score"]], EXACT, compat=COMPAT)
    yield from _patterns(stored["memorization_patterns"])
    yield from _tofu(stored["tofu_aggregation"])
    for pair in golden.read("rouge_pairs")["pairs"]:
        sides = pair["prediction"], pair["reference"]
        seen = all(word.isascii() for side in sides for word in words(side))
        for stem, name in ((True, "stemmer"), (False, "no_stemmer")):
            scores = rouge(*sides, stem=stem) if seen else published.rouge(*sides, stem=stem)
            for kind, ours in (("rouge1", "rouge_1"), ("rougeL", "rouge_l")):
                for place, measure in enumerate(("recall", "f1"), 1):
                    ends = [scores[f"{ours}_{measure}"]], [pair[name][kind][place]]
                    yield from compare(f"{ours}_{measure}", *ends, EXACT, compat="" if seen else "rouge-score")


def record_of_logps(logps: Sequence[float]) -> TokenRecord:
    """A record of which nothing but the log-probabilities is looked at."""
    values = np.array(logps, dtype=np.float64)
    return TokenRecord("given", values, np.zeros(len(values), dtype=bool), np.zeros_like(values), np.zeros_like(values))


def record_of_logits(logits: Sequence[Sequence[float]], labels: Sequence[int]) -> TokenRecord:
    """The record of `(targets, vocab)` logits, through the kernel."""
    stats = token_stats(torch.tensor(logits, dtype=torch.float64), Head(None), torch.tensor(labels))
    return TokenRecord("given", *(getattr(stats, name).numpy() for name in ("logps", "hits", "mean_logp", "var_logp")))


def _truth_ratios(case: dict[str, Any]) -> Iterator[Comparison]:
    wrong = [loss if isinstance(loss, list) else [loss] for loss in case["wrong_avg_loss"]]
    pairs = list(zip(case["correct_avg_loss"], wrong, strict=True))
    ratios = [published.truth_ratio(right, other, published.EPSILON) for right, other in pairs]
    shares = [published.truth_probability(right, other) for right, other in pairs]
    options = [published.normalized_probability(right, other) for right, other in pairs]
    for key, metric, rows, shown in (
        ("closer_to_1_better", "forget_truth_ratio", [published.folded(r) for r in ratios], ratios),
        ("true_better", "retain_truth_ratio", [max(0.0, 1 - r) for r in ratios], ratios),
        ("prob_mean", "truth_probability", shares, shares),
        ("probability_w_options", "normalized_probability", options, options),
    ):
        stored = case[key]
        yield from compare(metric, [mean(rows)], [stored["agg_value"]], EXACT, compat=COMPAT)
        name = "truth_ratio" if shown is ratios else metric
        yield from compare(name, shown, stored["per_sample"], EXACT, compat=COMPAT, relative=True)


def _min_k(case: dict[str, Any]) -> Iterator[Comparison]:
    record = record_of_logps(case["token_log_prob"])
    if case["vocabulary_log_prob"] is not None:
        labels = [0] * len(record)  # their moments do not depend on it
        moments = record_of_logits(case["vocabulary_log_prob"], labels)
        record = replace(moments, logps=record.logps)
    # One more token at the end, for the published code to drop.
    longer = TokenRecord(
        "given", *(np.append(getattr(record, name), 0) for name in ("logps", "hits", "mean_logp", "var_logp"))
    )
    for name, stored in case.items():
        if name.startswith("min_k"):
            metric, _, k = name.rpartition("_")
            function, theirs = (getattr(home, metric) for home in (attacks, published))
            yield from compare(metric, [theirs(longer, float(k))], [stored], FROM_FP32, compat=COMPAT, relative=True)
            yield from compare(metric, [-function(record, float(k))], [stored], FROM_FP32, relative=True)


def _patterns(stored: dict[str, Any]) -> Iterator[Comparison]:
    means: dict[str, list[float]] = {"extraction_strength": [], "exact_memorization": []}
    for item in stored["items"]:
        labels = [label for label in item["labels"] if label != -100]
        record = record_of_logits(item["logits_row_per_label"], labels)
        intended = item["intended"]
        for function, theirs, tolerance in (
            (extraction_strength, published.extraction, EXACT),
            (exact_memorization, published.exact_match_share, IN_FP32),
        ):
            name = function.__name__
            means[name].append(theirs(record))
            yield from compare(name, means[name][-1:], [item[name]], tolerance, compat=COMPAT)
            yield from compare(name, [function(record)], [intended[f"{name}_all_labels"]], EXACT)
        floor = intended["extraction_strength_zero_floor_without_last_label"]
        yield from compare("extraction_strength", [extraction_strength(record[:-1])], [floor], EXACT)
        yield from compare("mean_nll", [mean_nll(record)], [item["avg_loss"]], IN_FP32)
        yield from compare("probability", [probability(record)], [item["prob"]], IN_FP32)
    for name, tolerance in (("extraction_strength", EXACT), ("exact_memorization", IN_FP32)):
        yield from compare(name, [mean(means[name])], [stored[f"{name}_mean"]], tolerance, compat=COMPAT)


def _tofu(stored: dict[str, Any]) -> Iterator[Comparison]:
    logs, retrained = stored["unlearned_logs"], stored["retain_logs"]
    yield from tofu.utilities(logs, stored, EXACT)
    for key in ("forget_quality_utils", "forget_quality_aggregate_eval_stat"):
        ours = tofu.quality(logs, retrained)
        yield from compare("forget_quality", [ours], [stored[key]["Forget Quality"]], EXACT, compat="tofu")
    file = tofu.FILES["Forget"][0]
    inverse = [math.exp(-loss) for loss in logs[file]["avg_gt_loss"].values()]
    yield from compare("probability", [mean(inverse)], [stored["model_utility_utils"]["Forget Probability"]], EXACT)
