"""What else the model can do: tasks of lm-eval (`expunge[lm-eval]`), such as MMLU.

The values of every row are kept, so that the means have the same kind of interval as all others.
"""

import io
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from expunge.errors import ConfigError, DataError
from expunge.evaluation.estimate import Estimate
from expunge.evaluation.measurement import Values
from expunge.evaluation.stats import difference_estimate
from expunge.model.load import LoadedModel

SOURCE = "lm-evaluation-harness"
COUNTED = ("acc", "exact_match")
"""Metrics that a task is read by where it has them."""
LIKELIHOOD = "perplexity"
"""What lm-eval calls a row's log-likelihood, from which the task's perplexity is made."""
BATCH_ROWS = 16
"""Rows of a batch, of 256 tokens or so."""


def check_tasks(tasks: Sequence[str], task_path: str | None) -> None:
    """Refuse tasks that could not be run, before any work.

    Raises:
        ConfigError: lm-eval is not installed, a task is unknown or a tag of several, or `task_path` is no folder.
    """
    if find_spec("lm_eval") is None:
        raise ConfigError("--tasks needs lm-eval, which is not installed: pip install 'expunge[lm-eval]'")
    if task_path and not os.path.isdir(task_path):
        raise ConfigError(f"--task-path {task_path}: no such folder")
    with _quiet():
        manager = _manager(tuple(tasks), task_path)
        known, tags = {*manager.all_tasks}, {*getattr(manager, "all_tags", ())}
    if joint := [name for name in tasks if name in tags]:
        raise ConfigError(f"--tasks {','.join(tasks)}: {joint[0]} stands for several tasks: name those that you want")
    unknown = [name for name in tasks if name not in known]
    if unknown:
        raise ConfigError(
            f"--tasks {','.join(tasks)}: lm-eval knows no {', '.join(unknown)}; `lm-eval ls tasks` lists those it "
            "knows, and --task-path adds yours"
        )


def run_tasks(
    loaded: LoadedModel, tasks: Sequence[str], *, task_path: str | None = None, limit: int | None = None
) -> dict[tuple[str, str], Values]:
    """Run tasks, or groups of them, on a model as it stands: (`all`, name with its metric) -> values.

    `task_path` is a folder with further task files, `limit` the rows per task (all when None).

    Raises:
        DataError: A task's data cannot be had, or it has no metric of single rows.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    with _quiet(), loaded.autocast():
        model = HFLM(
            pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=BATCH_ROWS, max_length=loaded.context
        )
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
    groups = found.get("group_subtasks", {})
    return dict(_values(name, _leaves(name, groups), found["samples"]) for name in tasks)


def task_entries(
    rows: Mapping[tuple[str, str], Values], before: Mapping[tuple[str, str], Values] | None = None
) -> dict[str, Estimate]:
    """Name in results -> mean of a task's rows and, where the untouched model's are given, the paired change."""
    found = {"/".join(key): values.estimate().read_as("higher", "utility", SOURCE) for key, values in rows.items()}
    if before is not None:
        for key, values in rows.items():
            change = difference_estimate(before[key].values, values.values, values.documents)
            source = f"{SOURCE}; paired with the untouched model"
            found[f"{'/'.join(key)}_change"] = change.read_as("higher", "utility", source)
    return found


def mmlu_of(rows: Mapping[tuple[str, str], Values]) -> float | None:
    """Accuracy of the task `mmlu`, or else over all rows of the `mmlu_...` of multiple choice; None without any."""
    parts = {
        name: values.values for (_, name), values in rows.items() if name.startswith("mmlu_") and name.endswith("_acc")
    }
    mmlu = [parts["mmlu_acc"]] if "mmlu_acc" in parts else [*parts.values()]
    return float(np.concatenate(mmlu).mean()) if mmlu else None


def _leaves(name: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """The tasks of a group, or the task itself."""
    below = groups.get(name) or []
    return [leaf for task in below for leaf in _leaves(task, groups)] if below else [name]


def _values(
    name: str, leaves: Sequence[str], samples: Mapping[str, Sequence[Mapping[str, Any]]]
) -> tuple[tuple[str, str], Values]:
    """The rows of a task: a document that several filters read (as of gsm8k) once, as the first of them did."""
    firsts = [samples[leaf][0] for leaf in leaves]
    known = [
        metric for metric in firsts[0].get("metrics", [])
        if metric != LIKELIHOOD and all(isinstance(first.get(metric), int | float) for first in firsts)
    ]  # fmt: skip
    metric = next((metric for metric in (*COUNTED, *known) if metric in known), None)
    if metric is None:
        raise DataError(
            f"--tasks {name}: has no metric of single rows that all of its tasks have: name tasks in its place"
        )
    found = [
        (leaf, sample)
        for leaf in leaves
        for sample in samples[leaf]
        if sample.get("filter") == samples[leaf][0].get("filter")
    ]
    values = np.array([float(sample[metric]) for _, sample in found])
    if not np.isfinite(values).all():
        raise DataError(f"--tasks {name}: its {metric} is no finite number on some rows")
    rows = tuple(f"{leaf}-{sample['doc_id']}" for leaf, sample in found)
    return ("all", f"{name}_{metric}"), Values(rows, tuple(leaf for leaf, _ in found), rows, values)


@cache
def _manager(tasks: tuple[str, ...], task_path: str | None) -> Any:
    """Where lm-eval looks for tasks; its own 14,000 are read (12 s) only when the folder does not hold them all."""
    from lm_eval.tasks import TaskManager

    if task_path:
        manager = TaskManager(include_path=task_path, include_defaults=False)
        if {*tasks} <= {*manager.all_tasks}:
            return manager
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
