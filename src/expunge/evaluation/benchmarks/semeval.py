"""SemEval-2025 Task 4 and the LUME benchmark behind it: completions and questions about the same documents.

`semeval` reads the organisers' folder with its splits, `lume` the whole benchmark (forget.jsonl, retain.jsonl); the
metrics and the official scores are the same.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from expunge.config import EvaluateConfig
from expunge.data.examples import Example
from expunge.data.lume import LumeData, read_lume
from expunge.evaluation.benchmarks.official_score import SemevalScores, score, unranked
from expunge.evaluation.estimate import Estimate
from expunge.evaluation.measurement import Measurement, Values, document_of
from expunge.evaluation.metrics import ATTACKS, METRICS
from expunge.evaluation.metrics.generations import seen_by_published_rouge
from expunge.evaluation.metrics.registry import Row, default_metrics
from expunge.evaluation.predictions import SIDES, SPLITS, Prediction, Predictions
from expunge.evaluation.stats import auc_estimate, statistic_estimate
from expunge.evaluation.suite import Documents, RowSet, Suite
from expunge.utils.roc import Floats, auc

SOURCE = "SemEval-2025 Task 4 (2504.02883)"
OFFICIAL = ("official_regurgitation", "official_knowledge")
SCORED = ("rouge_1_recall", "rouge_l_recall", "exact_match")
"""What stored predictions tell."""


def read(config: EvaluateConfig) -> Suite:
    """The organisers' folder, one split, or the whole benchmark, which has no splits."""
    return suite_of(read_lume(config.data or "", config.split))


def suite_of(data: LumeData) -> Suite:
    """The benchmark's rows and documents as the passes take them."""
    documents = None
    if data.member is not None and data.nonmember is not None:
        documents = Documents(data.member, data.nonmember)
    sets = (("forget", data.forget), ("retain", data.retain))
    return Suite(
        tuple(_rows(name, rows, default_metrics(name)) for name, rows in sets), documents, alone=True, split=data.split
    )


def predictions_of(measurement: Measurement, suite: Suite) -> Predictions:
    """What was said and how well the documents are known, as the official scorer takes it."""
    sides: dict[str, list[Prediction]] = {}
    for name in SPLITS:
        rows = zip(suite[name].examples, measurement.said[name], strict=True)
        sides[name] = [Prediction(row.id, row.task, row.kind, row.completion, said or "") for row, said in rows]
    losses = [
        measurement.rows[name, "document_nll"].values.tolist() if (name, "document_nll") in measurement.rows else None
        for name in SIDES
    ]
    return Predictions(sides["forget"], sides["retain"], *losses)


def suite_of_predictions(predictions: Predictions) -> tuple[Suite, Measurement]:
    """Stored predictions as a suite, and what they tell without a model: official metrics, losses of documents."""
    sets, found = [], Measurement()
    for name, rows in (("forget", predictions.forget), ("retain", predictions.retain)):
        examples = [Example(row.id, "", row.expected_output, row.task, row.kind) for row in rows]
        sets.append(_rows(name, examples, SCORED))
        facts = [Row(kind=row.kind, expected=row.expected_output, text=row.model_output) for row in rows]
        for metric in (METRICS[own] for own in sets[-1].metrics):
            values = [metric.of(row) for row in facts]
            own = Values.of(f"{name}/{metric.name}", examples, sets[-1].documents, values)
            found.add(name, metric.name, metric, own)
        found.said[name] = [row.model_output for row in rows]
    sides = []
    for side in SIDES:
        losses = getattr(predictions, side)
        if losses is not None:
            ids = [f"{side}-{number}" for number in range(1, len(losses) + 1)]
            texts = [Example(own, "", "-") for own in ids]
            found.rows[side, "document_nll"] = Values.of(f"{side}/document_nll", texts, ids, losses)
            sides.append(Values.of(side, texts, ids, [-loss for loss in losses]))
    if len(sides) == 2:
        found.attacks["loss"], found.metrics["membership", "loss"] = (sides[0], sides[1]), ATTACKS["loss"]
    return Suite(tuple(sets)), found


def official_scores(measurement: Measurement, suite: Suite, mmlu: float | None = None) -> SemevalScores:
    """The official score of what was said, without its membership part where that would tell single texts."""
    own = predictions_of(measurement, suite)
    found = score(own.forget, own.retain, own.member, own.nonmember, mmlu)
    return replace(found, mia_auc=None, mia_score=None, final_score=None) if found.few_documents else found


def official_fields(measurement: Measurement, suite: Suite, mmlu: float | None) -> dict[str, Any]:
    """The official numbers of a results file."""
    losses = {side: own for side in SIDES if (own := getattr(predictions_of(measurement, suite), side))}
    means = {side: Estimate(fmean(own), n=len(own)).coarse().value for side, own in losses.items()}
    return {**official_scores(measurement, suite, mmlu).as_dict(), "mean_nll": means}


def blind_spots(measurement: Measurement, suite: Suite) -> list[str]:
    """What the official score cannot see: its ROUGE knows the letters a to z and the digits 0 to 9 alone."""
    found = []
    for name in SPLITS:
        rows = [row for row in suite[name].examples if row.kind == "sc"]
        unseen = sum(not seen_by_published_rouge(row.completion) for row in rows)
        if unseen:
            found.append(
                f"Not measurable by the official ROUGE: {unseen} of {len(rows)} {name} completions hold no a-z and no "
                f"0-9, and it gives each of them 0. {name}/rouge_l_recall is ours, over words of any script."
            )
    return found


def notes(measurement: Measurement, suite: Suite, mmlu: float | None) -> list[str]:
    """What the official numbers do not say."""
    return [*blind_spots(measurement, suite), *unranked(mmlu)]


def aggregate_entries(
    measurement: Measurement, reference: Measurement | None, suite: Suite, mmlu: float | None
) -> dict[str, Estimate]:
    """The official aggregates, with intervals where their parts have rows."""
    scores = official_scores(measurement, suite, mmlu)
    missing, how = scores.missing(), ("higher", "official", SOURCE)
    blind = " ".join(blind_spots(measurement, suite))
    groups, documents = _groups(measurement, scores)

    def aggregate(name: str, statistic: Any) -> Estimate:
        if name in missing or not groups:
            return Estimate(math.nan, reason=missing.get(name, "no row is scored")).read_as(*how)
        own = statistic_estimate(groups, statistic, documents)
        return replace(own, reason=" ".join(filter(None, (own.reason, blind)))).read_as(*how)

    found = {"all/task_aggregate": aggregate("task_aggregate", _aggregate)}
    if mmlu is not None:
        found["all/mmlu"] = Estimate(mmlu, n=None, reason="given as a number, without its rows").read_as(*how)
    if scores.mia_score is not None:
        members, nonmembers = (-measurement.rows[side, "document_nll"].values for side in SIDES)
        found["all/mia_score"] = _folded(auc_estimate(members, nonmembers)).read_as(*how)
        if mmlu is not None:
            groups |= {"member": members, "nonmember": nonmembers}
            found["all/final_score"] = aggregate("final_score", lambda own: _final(own, mmlu))
    return found


def _rows(name: str, examples: Sequence[Example], metrics: Sequence[str]) -> RowSet:
    return RowSet(name, examples, [document_of(example.id) for example in examples], (*metrics, *OFFICIAL))


def _groups(measurement: Measurement, scores: SemevalScores) -> tuple[dict[str, Floats], dict[str, Sequence[str]]]:
    """The official terms' rows and their documents, by `<split>/<task>/<metric>`."""
    groups: dict[str, Floats] = {}
    documents: dict[str, Sequence[str]] = {}
    for split in SPLITS:
        for task in getattr(scores, split):
            for metric in OFFICIAL:
                values = measurement.rows.get((split, metric))
                own = None if values is None else values.of_task(task)
                if own is not None and len(own.ids):
                    groups[f"{split}/{task}/{metric}"] = own.values
                    documents[f"{split}/{task}/{metric}"] = own.documents
    return groups, documents


def _aggregate(groups: Mapping[str, Floats]) -> float:
    terms = [
        float(1 - values.mean() if name.startswith("forget/") else values.mean())
        for name, values in groups.items()
        if "/" in name
    ]
    return len(terms) / sum(1 / term for term in terms) if all(term > 0 for term in terms) else 0.0


def _final(groups: Mapping[str, Floats], mmlu: float) -> float:
    score = 1 - 2 * abs(auc(groups["member"], groups["nonmember"]) - 0.5)
    return (_aggregate(groups) + score + mmlu) / 3


def _folded(area: Estimate) -> Estimate:
    """The interval of 1 - 2 |AUC - 0.5|, from that of the AUC."""
    value, *ends = (1 - 2 * abs(own - 0.5) for own in (area.value, area.low, area.high))
    high = 1.0 if area.low <= 0.5 <= area.high else max(ends)
    return replace(area, value=value, low=min(ends), high=high)
