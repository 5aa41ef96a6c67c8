"""The results file: what a benchmark measured on one model, as strict JSON that holds no text of the data.

Every benchmark has `metrics`: `<set>/<metric>[/<task>]` -> `{"value", "low", "high", "n", "direction", "target",
"source", "family", "reference", "difference"}` (the last two with a reference model: its value, and value, low and high
of the paired difference from it), with `reference` (the retrained model and the tests against it) and `not_measured`
(plain sentences) beside it. SemEval and LUME have the official numbers too:

`{"schema": 1, "benchmark": "semeval", "forget": {"Task1": {"regurgitation": x, "knowledge": x}, ...},
"retain": {...}, "terms": [...], "task_aggregate": x, "mia_auc": x, "mia_score": x, "mmlu": x, "final_score":
x, ...}`; what was not measured, and a mean without rows, is null. The fields are described at `SemevalScores`.
"""

import json
import statistics
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from expunge.errors import DataError
from expunge.evaluation.measured import measured_metrics
from expunge.evaluation.predictions import Predictions
from expunge.evaluation.semeval import SemevalScores
from expunge.utils.files import fingerprint, write_json

SCHEMA = 1
PACKAGES = ("expunge", "torch", "transformers", "peft", "rouge-score")
"""Their versions are noted, because generations and scores can depend on them."""
NUMBERS = ("task_aggregate", "mia_auc", "mia_score", "mmlu", "final_score")


def results_header(
    benchmark: str,
    *,
    model: str | None = None,
    adapter: str | None = None,
    adapter_sha256: str | None = None,
    settings: dict[str, Any] | None = None,
    data: dict[str, str] | None = None,
) -> dict[str, Any]:
    """What every results file says beside its numbers.

    Args:
        benchmark: Its name.
        model: Name or folder of the model; of an absolute path the last part alone is kept.
        adapter: The same of the adapter.
        adapter_sha256: Its `adapter_fingerprint`: the numbers are of this one at this strength.
        settings: How the numbers were made (`max_new_tokens`, `dtype`, ...).
        data: Set of rows -> fingerprint of them.
    """
    return {
        "schema": SCHEMA,
        "benchmark": benchmark,
        "model": short_name(model),
        "adapter": short_name(adapter),
        "adapter_sha256": adapter_sha256,
        "settings": settings or {},
        "data": data or {},
        "versions": _versions(),
    }


def semeval_results(
    scores: SemevalScores, predictions: Predictions, *, benchmark: str = "semeval", **header: Any
) -> dict[str, Any]:
    """The official part of a results file.

    Args:
        scores: What `score` gave.
        predictions: What was scored; only a fingerprint of its ids and references is kept.
        benchmark: `semeval` or `lume`.
        header: As for `results_header`.
    """
    data = {
        split: fingerprint(*(part for row in rows for part in (row.id, row.task, row.kind, row.expected_output)))
        for split, rows in (("forget", predictions.forget), ("retain", predictions.retain))
    }
    own = results_header(benchmark, data=data, **header)
    losses = {
        side: statistics.fmean(losses)
        for side, losses in (("member", predictions.member), ("nonmember", predictions.nonmember))
        if losses
    }
    first = {name: own.pop(name) for name in ("schema", "benchmark", "model", "adapter")}
    return {**first, **scores.as_dict(), "mean_nll": losses, **own}


def write_results(path: str | Path, results: dict[str, Any], *, overwrite: bool = False) -> None:
    """Write a results file, whole or not at all, readable by the owner alone; NaN becomes null.

    Raises:
        RunError: The file exists and `overwrite` is off.
    """
    write_json(path, results, overwrite=overwrite)


def read_results(path: str | Path) -> dict[str, Any]:
    """Read a results file of any benchmark and check what every reader relies on.

    Raises:
        DataError: Not a results file, of a schema that this version does not know, or with a number that is
            none.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path}: not a results file (invalid JSON)") from None
    if not isinstance(results, dict) or "schema" not in results or not isinstance(results.get("benchmark"), str):
        raise DataError(f"{path}: not a results file: it has no schema and benchmark")
    if results["schema"] != SCHEMA:
        raise DataError(f"{path}: results of schema {results['schema']!r}, this version reads schema {SCHEMA}")
    if results["benchmark"] in ("semeval", "lume"):
        _check_semeval(path, results)
    return results


def results_before(output: str | Path, benchmark: str) -> dict[str, Any] | None:
    """The untouched model's results on the same benchmark, `results_before.json` beside a results file; None without.

    Raises:
        DataError: It is no results file.
    """
    path = Path(output).with_name("results_before.json")
    if path.name == Path(output).name or not path.is_file():
        return None
    results = read_results(path)
    measured_metrics(path, results)
    return results if results["benchmark"] == benchmark else None


def _check_semeval(path: str | Path, results: dict[str, Any]) -> None:
    missing = [name for name in ("forget", "retain", "terms", *NUMBERS) if name not in results]
    if missing:
        raise DataError(f"{path}: field {missing[0]} is missing")
    values = {name: results[name] for name in NUMBERS}
    if not isinstance(results["terms"], list):
        raise DataError(f"{path}: field terms must be a list")
    values["quiz"] = results.get("quiz")
    values |= {f"terms[{i}]": value for i, value in enumerate(results["terms"])}
    for split in ("forget", "retain"):
        tasks = results[split]
        if not isinstance(tasks, dict) or not all(isinstance(means, dict) for means in tasks.values()):
            raise DataError(f"{path}: field {split} must hold the means of each task")
        values |= {f"{split}.{task}.{name}": mean for task, means in tasks.items() for name, mean in means.items()}
    losses = results.get("mean_nll", {})
    if not isinstance(losses, dict) or not all(isinstance(loss, int | float | None) for loss in losses.values()):
        raise DataError(f"{path}: field mean_nll must hold a number of each side")
    for name, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 <= value <= 1):
            raise DataError(f"{path}: field {name} must be a number between 0 and 1 or null")


def short_name(name: str | None) -> str | None:
    """A model's name as results show it: of an absolute path the last part alone."""
    return Path(name).name if name is not None and Path(name).is_absolute() else name


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # a source tree that is not installed has no version to note
    return found
