"""From measurements to the content of a results file."""

import math
from collections.abc import Mapping
from typing import Any

from expunge.data.holdout import FEWEST
from expunge.evaluation.benchmarks import Benchmark, lume
from expunge.evaluation.benchmarks.entries import (
    Entry,
    add_differences,
    add_reference,
    drift_entries,
    membership_entries,
    row_entries,
)
from expunge.evaluation.benchmarks.measurement import Measurement
from expunge.evaluation.benchmarks.suite import Suite
from expunge.evaluation.predictions import Predictions
from expunge.evaluation.results import results_header, semeval_results, short_name
from expunge.evaluation.semeval import SemevalScores, score
from expunge.evaluation.stats import ks_pvalue

STAND_IN = (
    "No model retrained without the forget set was given (--reference): 0.5 as the target of a membership AUC is only "
    "a stand-in, and whether the model can be told from one that never saw the texts was not tested."
)


def assemble(
    name: str,
    benchmark: Benchmark,
    suite: Suite,
    measurement: Measurement,
    *,
    reference: Measurement | None = None,
    reference_name: str | None = None,
    mmlu: float | None = None,
    utility: Mapping[str, Entry] | None = None,
    **header: Any,
) -> dict[str, Any]:
    """The content of a results file.

    Args:
        name: The benchmark's name.
        benchmark: The benchmark.
        suite: Its data.
        measurement: What was measured on the model.
        reference: The same of a model that never saw the forget set.
        reference_name: Its name.
        mmlu: Accuracy on MMLU, in [0, 1], for the final score.
        utility: What the utility tasks gave.
        header: `model`, `adapter`, `adapter_sha256` and `settings`, as for `results_header`.
    """
    scores = predictions = None
    if benchmark.official:
        predictions = lume.predictions_of(measurement, suite)
        scores = official_scores(predictions, mmlu)
        results = semeval_results(scores, predictions, benchmark=name, **header)
    else:
        results = results_header(name, data=suite.fingerprints(), **header)
    found = _entries(benchmark, suite, measurement, reference, scores) | dict(utility or {})
    if reference is not None:
        their_scores = None
        if benchmark.official:
            their_scores = official_scores(lume.predictions_of(reference, suite), None)
        add_reference(found, _entries(benchmark, suite, reference, None, their_scores))
        names = suite.documents.names if suite.documents else None
        add_differences(found, reference.table(names), measurement.table(names))
    results["metrics"] = found
    results["reference"] = None if reference is None else _tests(measurement, reference, reference_name)
    results["not_measured"] = _not_measured(suite, measurement, reference, bool(utility) or mmlu is not None)
    return results


def assemble_scored(predictions: Predictions, mmlu: float | None) -> dict[str, Any]:
    """The same of stored predictions, without a model: the official metrics, with intervals."""
    scores, measurement = official_scores(predictions, mmlu), lume.measurement_of(predictions)
    results = semeval_results(scores, predictions)
    results["metrics"] = (
        lume.official_entries(measurement, scores)
        | row_entries(measurement, lume.scored_suite())
        | membership_entries(measurement)
    )
    results["reference"] = None
    results["not_measured"] = [STAND_IN, "Only what stored texts and losses tell was measured (expunge score)."]
    return results


def official_scores(predictions: Predictions, mmlu: float | None) -> SemevalScores:
    """The official score of predictions."""
    return score(predictions.forget, predictions.retain, predictions.member, predictions.nonmember, mmlu)


def _entries(
    benchmark: Benchmark,
    suite: Suite,
    measurement: Measurement,
    reference: Measurement | None,
    scores: SemevalScores | None,
) -> dict[str, Entry]:
    official = {} if scores is None else lume.official_entries(measurement, scores)
    return {
        **official,
        **benchmark.aggregate(measurement, reference),
        **row_entries(measurement, suite),
        **membership_entries(measurement),
        **drift_entries(measurement, suite.documents),
    }


def _tests(ours: Measurement, theirs: Measurement, name: str | None) -> dict[str, Any]:
    """Whether two models can be told apart by how they treat the forget set; NaN where the data does not allow it."""

    def p(metric: str) -> float:
        pair = [own.rows.get(("forget", metric)) for own in (ours, theirs)]
        return math.nan if None in pair else ks_pvalue(*(values.values for values in pair if values is not None))

    return {
        "model": short_name(name),
        "indistinguishable": {"truth_ratio_ks_p": p("truth_ratio_raw"), "loss_ks_p": p("nll")},
    }


def _not_measured(suite: Suite, measurement: Measurement, reference: Measurement | None, general: bool) -> list[str]:
    found = [*suite.not_measured, *measurement.not_measured]
    if reference is None:
        found.append(STAND_IN)
    fewest = min(len(suite.documents.members), len(suite.documents.nonmembers)) if suite.documents else FEWEST
    if fewest < FEWEST:
        found.append(
            f"Membership and drift rest on {fewest} texts of one side: fewer than {FEWEST} tell next to nothing."
        )
    if suite.documents is None and not suite.not_measured:
        found.append("The data has no texts that the model has never seen, so no membership attack was run.")
    if suite.documents is not None and "gradient_norm" not in measurement.attacks:
        found.append("The gradient-norm attack, a backward pass per text, is run on request (--attacks gradient_norm).")
    if ("forget", "fluency") not in measurement.rows:
        found.append("Fluency needs the untouched model: it is measured of an adapter (--adapter).")
    if not any(metric.startswith("leak_at_") for _, metric in measurement.rows):
        found.append("Leaks under sampling were not measured (--samples).")
    if not general:
        found.append("General abilities were not measured (--tasks, --mmlu).")
    return found
