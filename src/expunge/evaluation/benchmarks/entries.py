"""The `metrics` of a results file: what a measurement comes to, with intervals, and where to read each number up."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from expunge.evaluation.benchmarks.measurement import Measurement
from expunge.evaluation.benchmarks.suite import Documents, RowSet, Suite
from expunge.evaluation.metrics import METRICS, Metric
from expunge.evaluation.paired import Table, paired_difference
from expunge.evaluation.stats import Estimate, auc_estimate, tpr_estimate
from expunge.evaluation.values import Values

Entry = dict[str, Any]
"""value, low, high, n, direction, source, family; target where there is one; reference and difference beside one."""

BY_TASK = ("probability", "extraction_strength", "rouge_l_recall", "exact_match")
"""Metrics that are also given for each task."""
FALSE_ALARMS = (0.01, 0.05)
CHANCE = 0.5
CARLINI = "Carlini et al. 2022 (2112.03570)"


def entry(estimate: Estimate, direction: str | None, family: str, source: str, target: float | None = None) -> Entry:
    """One number of `metrics`; what is NaN here becomes null in the file."""
    goal = {} if target is None else {"target": target}
    return {**vars(estimate), "direction": direction, **goal, "source": source, "family": family}


def within(estimate: Estimate, low: float, high: float) -> Estimate:
    """The estimate with its interval cut to the values that the metric can have."""
    ends = (estimate.low if math.isnan(estimate.low) else max(estimate.low, low), estimate.high)
    return replace(estimate, low=ends[0], high=ends[1] if math.isnan(ends[1]) else min(ends[1], high))


def point(value: float, n: int, direction: str | None, family: str, source: str, target: float | None = None) -> Entry:
    """A number without an interval."""
    return entry(Estimate(value, math.nan, math.nan, n), direction, family, source, target)


def row_entries(measurement: Measurement, suite: Suite) -> dict[str, Entry]:
    """Means over the rows of every set, and of every task where there are several."""
    found: dict[str, Entry] = {}
    for rows in suite.sets:
        for name in _measured(measurement, rows):
            values, metric = measurement.rows[rows.name, name], _metric(rows.name, name)
            found[f"{rows.name}/{name}"] = _of_values(values, metric, rows.name)
            tasks = sorted({*values.tasks} - {""})
            for task in tasks if rows.by_task and name in BY_TASK and len(tasks) > 1 else ():
                found[f"{rows.name}/{name}/{task}"] = _of_values(values.of_task(task), metric, rows.name)
    return found


def membership_entries(measurement: Measurement) -> dict[str, Entry]:
    """AUC and the share of members found at few false alarms, of every attack."""
    found = {}
    for attack, (members, nonmembers) in measurement.attacks.items():
        inside, outside = members.values, nonmembers.values
        source = METRICS[_base_name(attack)].source
        auc = auc_estimate(inside, outside)
        found[f"membership/{attack}_auc"] = entry(auc, "target", "membership", source, CHANCE)
        for rate in FALSE_ALARMS:
            tpr = tpr_estimate(inside, outside, rate)
            name = f"membership/{attack}_tpr_at_{round(100 * rate)}_fpr"
            found[name] = entry(tpr, "target", "membership", f"{source}; {CARLINI}", rate)
    return found


def drift_entries(measurement: Measurement, documents: Documents | None) -> dict[str, Entry]:
    """How likely unseen texts are, and of an adapter, how much less likely they have become, nats per token."""
    if documents is None:
        return {}
    own = documents.names[1], "document_nll"
    source = "mean NLL of the unseen documents, nats per token"
    found = {"/".join(own): entry(measurement.rows[own].estimate(), "lower", "drift", source)}
    if measurement.drift is not None:
        source = "mean NLL - that of the untouched model, nats per token"
        found["holdout/drift"] = entry(measurement.drift.estimate(), "target", "drift", source, 0.0)
    return found


def add_reference(found: dict[str, Entry], theirs: Mapping[str, Entry]) -> None:
    """Put the reference's values beside ours; where the target was chance, the reference's value is the target."""
    for name, own in found.items():
        other = theirs.get(name)
        if other is not None and not math.isnan(other["value"]):
            own["reference"] = other["value"]
            if own["family"] == "membership":
                own["target"] = other["value"]


def add_differences(found: dict[str, Entry], theirs: Table, ours: Table) -> None:
    """Put the paired difference from the reference, with its interval, to every mean over rows and every AUC."""
    for name, own in found.items():
        change = paired_difference(name, theirs, ours) if "reference" in own else None
        if change is not None:
            own["difference"] = {"value": change.value, "low": change.low, "high": change.high}


def _measured(measurement: Measurement, rows: RowSet) -> Iterator[str]:
    """The set's metrics as far as they were measured, in order, then those that have no place in its list."""
    listed = [name for name in rows.metrics if (rows.name, name) in measurement.rows]
    leaks = [name for own, name in measurement.rows if own == rows.name and name.startswith("leak_at_")]
    again = [f"{name}/paraphrased" for name in listed if (rows.name, f"{name}/paraphrased") in measurement.rows]
    yield from (*listed, *leaks, *again)


def _metric(set_name: str, name: str) -> Metric:
    name = name.removesuffix("/paraphrased")
    if name == "truth_ratio":
        name = "forget_truth_ratio" if set_name == "forget" else "retain_truth_ratio"
    return METRICS["leak_at_k" if name.startswith("leak_at_") else name]


def _of_values(values: Values, metric: Metric, set_name: str) -> Entry:
    direction = metric.direction_on(set_name)
    target = metric.target if direction == "target" else None
    return entry(within(values.estimate(), metric.low, metric.high), direction, metric.family, metric.source, target)


def _base_name(attack: str) -> str:
    """The attack without its share: `min_k` of `min_k_20`."""
    stem, _, last = attack.rpartition("_")
    return stem if last.isdecimal() else attack
