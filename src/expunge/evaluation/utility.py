"""What else the model can do: tasks of lm-eval (`expunge[lm-eval]`), such as MMLU.

The values of every row are kept, so that the means have the same kind of interval as all others.
"""

import io
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from expunge.errors import ConfigError, DataError
from expunge.evaluation.estimate import Estimate
from expunge.evaluation.measurement import Values
from expunge.evaluation.stats import difference_estimate, mean_estimate
from expunge.model.load import LoadedModel
from expunge.utils.roc import Floats

SOURCE = "lm-evaluation-harness"
BATCH_TOKENS = 4096
"""Rough area of a batch; lm-eval takes a number of rows."""


@dataclass(frozen=True)
class TaskValues:
    """One metric of one task, or of all tasks of a group.

    Attributes:
        metric: lm-eval's name of it (`acc`, `exact_match`, ...).
        tasks: Task of each row.
        rows: Name of each row.
        values: float64 `(rows,)`.
    """

    metric: str
    tasks: tuple[str, ...]
    rows: tuple[str, ...]
    values: Floats


def check_tasks(tasks: Sequence[str], task_path: str | None) -> None:
    """Refuse tasks that could not be run, before any work.

    Raises:
        ConfigError: lm-eval is not installed, a task is unknown, or `task_path` is no folder.
    """
    if find_spec("lm_eval") is None:
        raise ConfigError("--tasks needs lm-eval, which is not installed: pip install 'expunge[lm-eval]'")
    if task_path and not os.path.isdir(task_path):
        raise ConfigError(f"--task-path {task_path}: no such folder")
    with _quiet():
        known = {*_manager(tuple(tasks), task_path).all_tasks}
    unknown = [name for name in tasks if name not in known]
    if unknown:
        raise ConfigError(
            f"--tasks {','.join(tasks)}: lm-eval knows no {', '.join(unknown)}; `lm-eval ls tasks` lists those it "
            "knows, and --task-path adds yours"
        )


def run_tasks(
    loaded: LoadedModel, tasks: Sequence[str], *, task_path: str | None = None, limit: int | None = None
) -> dict[str, TaskValues]:
    """Run tasks, or groups of them, on a model as it stands: name -> values of its first metric.

    `task_path` is a folder with further task files, `limit` the rows per task (all when None).

    Raises:
        DataError: A task's data cannot be had, or it has no metric of single rows.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    with _quiet(), loaded.autocast():
        rows = max(1, BATCH_TOKENS // 256)
        model = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=rows, max_length=loaded.context)
        try:
            found = lm_eval.simple_evaluate(
                model=model,
                tasks=list(tasks),
                task_manager=_manager(tuple(tasks), task_path),
                limit=limit,
                bootstrap_iters=0,
                log_samples=True,
            )
        except (OSError, ConnectionError, ValueError, KeyError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise DataError(f"--tasks {','.join(tasks)}: lm-eval cannot run them ({reason})") from None
    samples = found["samples"]
    return {name: _values(name, _leaves(name, found.get("group_subtasks", {})), samples) for name in tasks}


def task_entries(after: Mapping[str, TaskValues], before: Mapping[str, TaskValues] | None) -> dict[str, Estimate]:
    """Mean of every task; with the paired change from the untouched model's, where that was asked too."""
    found = {}
    for name, own in after.items():
        key = f"all/{name}_{own.metric}"
        found[key] = mean_estimate(own.values, own.rows).read_as("higher", "utility", SOURCE)
        if before is not None:
            change = difference_estimate(before[name].values, own.values, own.rows)
            source = f"{SOURCE}; paired with the untouched model"
            found[f"{key}_change"] = change.read_as("higher", "utility", source)
    return found


def task_rows(after: Mapping[str, TaskValues]) -> dict[tuple[str, str], Values]:
    """The values for the per-example file."""
    return {
        ("all", f"{name}_{own.metric}"): Values(own.rows, own.tasks, own.rows, own.values)
        for name, own in after.items()
    }


def mmlu_average(values: Mapping[str, TaskValues]) -> float | None:
    """Accuracy over all rows of the tasks whose names begin with `mmlu`; None when there are none."""
    found = [own.values for name, own in values.items() if name.startswith("mmlu")]
    return float(np.concatenate(found).mean()) if found else None


def _leaves(name: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """The tasks of a group, or the task itself."""
    below = groups.get(name) or []
    return [leaf for own in below for leaf in _leaves(own, groups)] if below else [name]


def _values(name: str, leaves: Sequence[str], samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> TaskValues:
    first = samples[leaves[0]][0]
    metric = next((own for own in first.get("metrics", []) if isinstance(first.get(own), int | float)), None)
    if metric is None:
        raise DataError(f"--tasks {name}: has no metric of single rows, so there is nothing to take a mean of")
    tasks, rows, values = [], [], []
    for leaf in leaves:
        for sample in samples[leaf]:
            tasks.append(leaf)
            rows.append(f"{leaf}-{sample['doc_id']}")
            values.append(float(sample[metric]))
    if not all(math.isfinite(value) for value in values):
        raise DataError(f"--tasks {name}: its {metric} is no finite number on some rows")
    return TaskValues(metric, tuple(tasks), tuple(rows), np.array(values))


@cache
def _manager(tasks: tuple[str, ...], task_path: str | None) -> Any:
    """Where lm-eval looks for tasks; its own 14,000 are read (12 s) only when the folder does not hold them all."""
    from lm_eval.tasks import TaskManager

    if task_path:
        own = TaskManager(include_path=task_path, include_defaults=False)
        if {*tasks} <= {*own.all_tasks}:
            return own
    return TaskManager(include_path=task_path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's log lines; its bars stay where there is a terminal to draw them on."""
    earlier = logging.root.manager.disable
    logging.disable(logging.WARNING)
    bars = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
    try:
        with bars:
            yield
    finally:
        logging.disable(earlier)
