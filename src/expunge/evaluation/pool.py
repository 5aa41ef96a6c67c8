"""Several runs (seeds) of one configuration as one: means, their spread over runs, and intervals for the means."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge.errors import DataError
from expunge.evaluation.estimate import NAN, Estimate
from expunge.evaluation.results import NUMBERS, measured_metrics, of_other_keys, other_subject
from expunge.runs.record import method_of, read_manifest

SEED = "seed"
"""The one setting in which runs of a configuration may differ."""
TRAINED_WITH = {"another model": "model_sha256", "another origin": "origin_sha256", "other data": "data"}
"""In what else, as a message calls it, the manifests of two runs may not differ."""


def pool_runs(runs: Sequence[tuple[str | Path, Mapping[str, Any]]]) -> dict[str, Estimate]:
    """Metric -> mean over runs, with an interval and the standard deviation over runs.

    The interval has the outer ends of two: Student's t, which says what another seed would give on the same rows, and
    the mean of the runs' own ends, which says what other rows would give: equal seeds are no certainty. A metric
    that some runs could not measure is the mean of the others, and the estimate says of how many. Each run is the name
    of its file, and the content; where its manifest lies beside, the settings that it was trained with count, too.

    Raises:
        DataError: The files are of different benchmarks, settings or data, two are of one adapter, or a metric is
            malformed.
    """
    first_path, first = runs[0]
    for path, results in runs[1:]:
        if difference := configuration_difference(first, results):
            raise DataError(f"{first_path} and {path} are not runs of one configuration: {difference}")
    metrics = [measured_metrics(path, results) for path, results in runs]
    adapters = {(results.get("fingerprint") or {}).get("adapter", "") for _, results in runs}
    if len(runs) == 1 or adapters == {None}:  # the untouched model beside each run is one model, measured again
        return metrics[0]
    _check_training(runs)
    from expunge.evaluation.stats import runs_estimate  # half a second that a plain comparison need not pay

    combined = {}
    for name in dict.fromkeys(name for scores in metrics for name in scores):
        found = [scores[name] for scores in metrics if name in scores]
        if len({(other.direction, other.target) for other in found}) > 1:
            raise DataError(
                f"{first_path} and others cannot be pooled: metric {ascii(name)[1:-1]} has two directions or targets"
            )
        values = [estimate.value for estimate in found if estimate.known]
        pooled, bounded = runs_estimate(values), [estimate for estimate in found if estimate.bounded]
        if pooled.bounded and bounded:
            ends = (
                statistics.fmean(estimate.low for estimate in bounded),
                statistics.fmean(estimate.high for estimate in bounded),
            )
            low, high = _possible(name)  # Student's t knows no bounds
            pooled = replace(pooled, low=max(low, min(pooled.low, ends[0])), high=min(high, max(pooled.high, ends[1])))
        combined[name] = replace(
            pooled,
            n=found[0].n if len({other.n for other in found}) == 1 else None,
            members=found[0].members if len({other.members for other in found}) == 1 else None,
            nonmembers=found[0].nonmembers if len({other.nonmembers for other in found}) == 1 else None,
            direction=found[0].direction,
            target=found[0].target,
            family=found[0].family,
            source=found[0].source,
            runs=len(values),
            std=statistics.stdev(values) if len(values) > 1 else NAN,
        )
    return combined


def _possible(name: str) -> tuple[float, float]:
    """The smallest and the largest value that a metric of this name in a results file can have."""
    from expunge.evaluation.metrics import METRICS

    of_set, _, rest = name.partition("/")
    metric, _, part = rest.partition("/")
    if metric in NUMBERS or (of_set == "membership" and ("_auc" in metric or "_tpr_at_" in metric)):
        return 0.0, 1.0
    names = {known.label(0) if known.label else known.name: known for known in METRICS.values()}
    known = names.get(re.sub(r"_at_\d+$", "_at_0", metric))
    if known is None or "own_minus_mismatched" in part:
        return -math.inf, math.inf
    return known.low, known.high


def configuration_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    """Where the configurations of two results files differ, in words; None where they agree.

    A configuration is the benchmark, what was measured (base model, data, prompt format) and the settings; adapters and
    seeds are what its runs differ in.
    """
    if first["benchmark"] != second["benchmark"]:
        return f"benchmark is {_shown(first['benchmark'])} in one and {_shown(second['benchmark'])} in the other"
    if others := other_subject(first, second):
        return f"the {others[0]} is not the same"  # fingerprints say nothing to a reader
    one, other = first.get("settings") or {}, second.get("settings") or {}
    for key in dict.fromkeys((*one, *other)):
        if key != SEED and one.get(key) != other.get(key):
            return f"setting {_shown(key)} is {_shown(one.get(key))} in one and {_shown(other.get(key))} in the other"
    return None


def _check_training(runs: Sequence[tuple[str | Path, Mapping[str, Any]]]) -> None:
    """Refuse one adapter twice, and adapters that were trained with other settings, model or data than the first.

    Hashes of data under another user's key, and settings that only one of two manifests has, are not compared.
    """
    of: dict[str, str | Path] = {}
    first: tuple[str | Path, dict[str, Any]] | None = None
    for path, results in runs:
        adapter = (results.get("fingerprint") or {}).get("adapter")
        if adapter is None:
            continue
        if (other := of.setdefault(adapter, path)) != path:
            raise DataError(f"{other} and {path} are of one adapter, which is one run: give each once")
        file = Path(path).with_name("manifest.json")
        if not file.is_file():
            continue
        manifest = read_manifest(file)
        first = first or (path, manifest)
        told = f"{first[0]} and {path} are not runs of one configuration: they were trained with"
        for name, key in TRAINED_WITH.items():
            other_user = key == "data" and of_other_keys({"fingerprint": first[1]}, {"fingerprint": manifest})
            if first[1].get(key) != manifest.get(key) and not other_user:
                raise DataError(f"{told} {name}")  # hashes say nothing to a reader
        one, method = (method_of(side["settings"]) for side in (first[1], manifest))
        for key in one:
            if key != "model" and one[key] != method.get(key, one[key]):
                raise DataError(f"{told} {_shown(key)} {_shown(one[key])} and {_shown(method[key])}")


def _shown(value: Any) -> str:
    text = ascii(value)
    text = text[1:-1] if isinstance(value, str) else text
    return text if len(text) <= 60 else text[:57] + "..."
