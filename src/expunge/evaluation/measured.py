"""The measured numbers of a results file, one form for every benchmark and for files written before `metrics`."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.errors import DataError

DIRECTIONS = ("higher", "lower", "target")
CHANCE_AUC = 0.5


@dataclass(frozen=True)
class Measured:
    """One metric of one model.

    Attributes:
        value: The number; None where nothing could be measured.
        low: Lower end of its 95 % interval; None where that is not known.
        high: Upper end.
        n: Rows that it rests on; None where the file does not say.
        direction: Which way is better, `higher`, `lower` or towards the `target`; None where neither is.
        target: The value to come close to.
        runs: Runs that are pooled in it.
        std: Standard deviation over runs; None of one run.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    direction: str | None = None
    target: float | None = None
    runs: int = 1
    std: float | None = None


def measured_metrics(path: str | Path, results: Mapping[str, Any]) -> dict[str, Measured]:
    """Metric -> what a results file says of it, in the file's order.

    Args:
        path: The file, for messages.
        results: Its content, as `read_results` gives it.

    Raises:
        DataError: An entry of `metrics` does not have the form that the results file promises, or there are none.
    """
    if "metrics" not in results:
        if results["benchmark"] != "semeval":
            raise DataError(f"{path}: field metrics is missing")
        return dict(_contract_numbers(path, results))
    metrics = results["metrics"]
    if not isinstance(metrics, dict):
        raise DataError(f"{path}: field metrics must be an object")
    return {name: _entry(f"{path}: metric {ascii(name)[1:-1]}", entry) for name, entry in metrics.items()}


def _entry(where: str, entry: Any) -> Measured:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: must be an object with value, low, high and n")
    numbers = {name: _number(where, name, entry.get(name)) for name in ("value", "low", "high", "n", "target")}
    direction = entry.get("direction")
    if direction is not None and direction not in DIRECTIONS:
        raise DataError(f"{where}: direction must be one of {', '.join(DIRECTIONS)}")
    if direction == "target" and numbers["target"] is None:
        raise DataError(f"{where}: has the direction target, and no target")
    if "value" not in entry:
        raise DataError(f"{where}: field value is missing")
    rows = numbers.pop("n")
    if numbers["low"] is None or numbers["high"] is None:
        numbers["low"] = numbers["high"] = None
    elif numbers["low"] > numbers["high"]:
        raise DataError(f"{where}: low is larger than high")
    return Measured(**numbers, n=None if rows is None else int(rows), direction=direction)


def _number(where: str, name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{where}: field {name} must be a finite number or null")
    return float(value)


def _contract_numbers(path: str | Path, results: Mapping[str, Any]) -> Iterator[tuple[str, Measured]]:
    """The official numbers of a SemEval file without `metrics`, under the names that they have there."""
    for split, direction in (("forget", "lower"), ("retain", "higher")):
        for task, means in results.get(split, {}).items():
            for key, metric in (("regurgitation", "rouge_l_recall"), ("knowledge", "exact_match")):
                if key in means:
                    yield f"{split}/{metric}/{task}", Measured(means[key], direction=direction)
    if "mia_auc" in results:
        yield "membership/loss_auc", Measured(results["mia_auc"], direction="target", target=CHANCE_AUC)
    for key in ("mia_score", "task_aggregate", "quiz", "mmlu", "final_score"):
        if key in results:
            yield f"all/{key}", Measured(_number(str(path), key, results[key]), direction="higher")
    losses = results.get("mean_nll")
    for side in ("member", "nonmember"):
        if isinstance(losses, dict) and side in losses:
            yield f"{side}/nll", Measured(_number(str(path), f"mean_nll.{side}", losses[side]))
