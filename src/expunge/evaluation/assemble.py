"""From measurements to the content of a results file: every number with its interval, and what was not measured."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from expunge.data.holdout import FEWEST
from expunge.evaluation.benchmarks import BENCHMARKS, Benchmark
from expunge.evaluation.estimate import Estimate
from expunge.evaluation.measurement import Measurement, shared_tasks
from expunge.evaluation.metrics.registry import HOLDOUT
from expunge.evaluation.mismatched import SUFFIX, difference_entries
from expunge.evaluation.paired import shown_difference
from expunge.evaluation.results import CHANCE_AUC, COMPARED, PACKAGES, SCHEMA, short_name
from expunge.evaluation.stats import auc_estimate, ks_pvalue, tpr_estimate
from expunge.evaluation.suite import Documents, RowSet, Suite
from expunge.evaluation.unseen import unseen_said
from expunge.utils.text import first_few
from expunge.utils.versions import versions_of

FALSE_ALARMS = (0.01, 0.05)
CARLINI = "Carlini et al. 2022 (2112.03570)"
STAND_IN = (
    "No model retrained without the forget set was given (--reference): 0.5 as the target of a membership AUC is only "
    "a stand-in, and whether the model can be told from one that never saw the texts was not tested."
)


def assemble(
    name: str,
    suite: Suite,
    measurement: Measurement,
    *,
    reference: Measurement | None = None,
    reference_name: str | None = None,
    reference_kind: str = "retrained",
    model: str | None = None,
    adapter: str | None = None,
    settings: Mapping[str, Any] | None = None,
    fingerprint: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of a results file of the benchmark of this name; of absolute paths the last part alone.

    `reference` is what was measured on a model that never saw the forget set: one `retrained` without it, or the
    `origin` from before it was seen. `settings` say how the numbers were made (`max_new_tokens`, `dtype`, ...), the
    `fingerprint` what they are of (`base`, `adapter`, `prompt_format`, as far as they are known), beside the data.
    """
    benchmark = BENCHMARKS[name]
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "benchmark": name,
        "model": short_name(model),
        "adapter": short_name(adapter),
        "settings": dict(settings or {}),
        "fingerprint": {**(fingerprint or {}), "data": dict(suite.fingerprints())},
        "versions": versions_of(*PACKAGES),
        **benchmark.fields(measurement, suite),
    }
    found = {**entries(benchmark, suite, measurement, reference), **measurement.utility}
    if reference is not None:
        theirs = entries(benchmark, suite, reference, None)
        tables = reference.table, measurement.table
        found = {key: _beside(key, estimate, theirs.get(key), *tables) for key, estimate in found.items()}
    results["metrics"] = {key: estimate.as_entry() for key, estimate in found.items()}
    results["reference"] = (
        None if reference is None else {"kind": reference_kind, **_tests(measurement, reference, reference_name)}
    )
    results |= unseen_said(suite, measurement)
    results["not_measured"] = [
        *suite.not_measured,
        *measurement.not_measured,
        *benchmark.notes(measurement, suite),
        *_not_measured(suite, measurement, reference, results["settings"]),
    ]
    return results


def entries(
    benchmark: Benchmark, suite: Suite, measurement: Measurement, reference: Measurement | None
) -> dict[str, Estimate]:
    """Every number of one model."""
    return {
        **benchmark.aggregate(measurement, reference, suite),
        **{key: estimate for rows in suite.sets for key, estimate in row_entries(measurement, rows).items()},
        **dict(difference_entries(measurement)),
        **membership_entries(measurement),
        **drift_entries(measurement, suite.documents),
    }


def row_entries(measurement: Measurement, rows: RowSet) -> dict[str, Estimate]:
    """Means over the rows of a set, and of every task where there are several; over unseen rows in the mixture of tasks
    that the forget set has.
    """
    found: dict[str, Estimate] = {}
    for (set_name, name), metric in measurement.metrics.items():
        if set_name != rows.name or metric.direction is None:
            continue
        values = measurement.rows[set_name, name]
        forget = measurement.rows.get(("forget", name)) if set_name == HOLDOUT else None
        parts = [("", values.estimate(forget), values.tells())]
        tasks = sorted({*values.tasks} - {""})
        if rows.by_task and metric.by_task and len(tasks) > 1 and "/" not in name:
            parts += [(f"/{task}", values.of_task(task).estimate(), values.tells(task)) for task in tasks]
        unseen = measurement.rows.get((HOLDOUT, name)) if set_name == "forget" and "/" not in name else None
        shared = shared_tasks(values.tasks, unseen.tasks) if unseen else set()
        if shared and shared < {*values.tasks}:
            parts.append((f"/{COMPARED}", values.of_tasks(shared).estimate(), values.part_tells(shared)))
        private = set_name == "forget" and {"record", "correct", "wrong", "rivals", "untouched"} & {*metric.needs}
        for suffix, estimate, tells in parts:
            entry = metric.read(estimate, set_name)
            entry = replace(entry, direction=None) if name.endswith(SUFFIX) else entry
            found[f"{set_name}/{name}{suffix}"] = entry.rounded() if private and tells else entry
    return found


def membership_entries(measurement: Measurement) -> dict[str, Estimate]:
    """AUC and the share of members found at few false alarms, of every attack; the AUC also of every task with enough
    texts on either side, where there are several tasks. Where a side has few texts, none has a value.
    """
    found = {}
    for name, (members, nonmembers) in measurement.attacks.items():
        source, counts = measurement.metrics["membership", name].source, (len(members.ids), len(nonmembers.ids))
        parts, tasks = {"": (members, nonmembers)}, {*members.tasks, *nonmembers.tasks}
        for task in sorted(tasks - {""}) if len(tasks) > 1 else ():
            part = members.of_task(task), nonmembers.of_task(task)
            if min(len(side.ids) for side in part) >= FEWEST:
                parts[f"/{task}"] = part
        for suffix, (inside, outside) in parts.items():
            area = auc_estimate(inside.values, outside.values, (inside.documents, outside.documents))
            area = area.withheld(len(inside.ids), len(outside.ids))
            found[f"membership/{name}_auc{suffix}"] = area.read_as("target", "membership", source, CHANCE_AUC)
        for rate in FALSE_ALARMS:
            share = tpr_estimate(members.values, nonmembers.values, rate).withheld(*counts)
            share = share.read_as("target", "membership", f"{source}; {CARLINI}", rate)
            found[f"membership/{name}_tpr_at_{round(100 * rate)}_fpr"] = share
    return found


def drift_entries(measurement: Measurement, documents: Documents | None) -> dict[str, Estimate]:
    """How likely unseen texts are, and of an adapter, how much less likely they have become, nats per token."""
    if documents is None:
        return {}
    key = documents.names[1], "document_nll"
    source = "mean NLL of the unseen documents, nats per token"
    found = {"/".join(key): measurement.rows[key].estimate().read_as("lower", "drift", source)}
    if measurement.drift is not None:
        source = "mean NLL - that of the untouched model, nats per token"
        found["holdout/drift"] = measurement.drift.estimate().read_as("target", "drift", source, 0.0)
    return found


def _beside(key: str, ours: Estimate, theirs: Estimate | None, *tables: Any) -> Estimate:
    """The number with the reference's; where the target was chance, the reference's value is the target."""
    if theirs is None or not theirs.known:
        return ours
    change = shown_difference(key, *tables)
    target = theirs.value if ours.family == "membership" else ours.target
    return replace(ours, reference=theirs.value, target=target, difference=change)


def _tests(ours: Measurement, theirs: Measurement, name: str | None) -> dict[str, Any]:
    """Whether two models can be told apart by how they treat the forget set."""
    found: dict[str, Any] = {"model": short_name(name), "indistinguishable": {}, "rows": {}}
    for label, metric in (("truth_ratio_ks_p", "truth_ratio_raw"), ("loss_ks_p", "nll")):
        pair = [measurement.rows.get(("forget", metric)) for measurement in (ours, theirs)]
        known = [values.values for values in pair if values is not None]
        found["indistinguishable"][label] = ks_pvalue(*known) if len(known) == 2 else None
        found["rows"][label] = min(map(len, known)) if len(known) == 2 else 0
        if len(known) < 2:
            found.setdefault("missing", {})[label] = "the data has no wrong answers"
    return found


def _lacking(suite: Suite) -> list[str]:
    """Tasks to forget of which there are hardly any unseen rows, where there are of others."""
    forget, unseen = (
        [row.label or row.task for rows in suite.sets if rows.name == name for row in rows.examples]
        for name in ("forget", HOLDOUT)
    )
    shared = shared_tasks(forget, unseen)
    lacking = {*forget} - shared if shared else set()
    return sorted(task or "those without a task" for task in lacking)


def _not_measured(
    suite: Suite, measurement: Measurement, reference: Measurement | None, settings: Mapping[str, Any]
) -> list[str]:
    found = []
    if reference is None:
        found.append(STAND_IN)
    fewest = min(len(suite.documents.members), len(suite.documents.nonmembers)) if suite.documents else FEWEST
    if fewest < FEWEST:
        found.append(
            f"Membership and drift rest on {fewest} texts of one side: fewer than {FEWEST} tell next to nothing."
        )
    if lacking := _lacking(suite):
        found.append(
            f"Kinds of which fewer than {FEWEST} unseen texts did not steer the run: {first_few(lacking, 5)}. The "
            "other texts to forget alone are compared with unseen ones."
        )
    if suite.documents is None and not suite.not_measured:
        found.append("The data has no texts that the model has never seen, so no membership attack was run.")
    if suite.documents is not None and "gradient_norm" not in measurement.attacks:
        found.append("The gradient-norm attack, a backward pass per text, is run on request (--attacks gradient_norm).")
    if left_out := settings.get("attacks_left_out"):
        found.append(f"Of the attacks that are cheap these were left out (--attacks): {', '.join(left_out)}.")
    asked = any(row.prompt or row.messages for part in suite.sets if part.name == "forget" for row in part.examples)
    if asked and ("forget", "fluency") not in measurement.rows:
        found.append("Fluency needs the untouched model: it is measured of an adapter (--adapter).")
    if asked and not any(metric.startswith("leak_at_") for _, metric in measurement.rows):
        found.append("Leaks under sampling were not measured (--samples).")
    if not measurement.utility and measurement.mmlu is None:
        found.append("General abilities were not measured (--tasks, --mmlu).")
    return found
