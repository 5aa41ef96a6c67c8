"""Run directories as `unlearn` and `evaluate` leave them, written without a model: what tests of the report read."""

import hashlib
import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expunge.config import UnlearnConfig
from expunge.utils.files import write_json

ROLES = ("before", "after", "retrained")
UNSAVED = ("resume", "overwrite")
PER_TASK = ("Task1", "Task2", "Task3")
LEVELS = {
    "forget/rouge_l_recall": (0.99, 0.41, 0.36, "lower", "memorization"),
    "forget/exact_match": (1.0, 0.02, 0.01, "lower", "memorization"),
    "forget/probability": (0.97, 0.11, 0.09, "lower", "memorization"),
    "retain/rouge_l_recall": (0.99, 0.985, 0.99, "higher", "memorization"),
    "retain/exact_match": (0.98, 0.975, 0.98, "higher", "memorization"),
    "utility/model_utility": (0.62, 0.612, 0.63, "higher", "utility"),
    "forget/repetition": (0.02, 0.03, 0.02, "lower", "text"),
}
"""Metric -> value before, after, of the reference; direction; family."""
ENDS = {"forget": (0.05, 1.25, 1.31), "retain": (0.05, 0.06, 0.05), "holdout": (1.30, 1.34, 1.31)}
"""Set -> mean NLL before, after, of the reference, nats per token."""


def write_run(
    folder: Path,
    *,
    seed: int = 0,
    scored: bool = True,
    metrics: dict[str, dict[str, Any]] | None = None,
    settings: dict[str, Any] | None = None,
    manifest: dict[str, Any] | None = None,
    steps: int = 120,
    rows: int = 60,
    ids: str = "row",
) -> Path:
    """A finished run with everything that a report can show.

    Args:
        folder: To be made.
        seed: Of the run and of its numbers.
        scored: Whether it was evaluated.
        metrics: Further entries of all results files.
        settings: Settings that differ from the recipe's.
        manifest: Entries of the manifest that differ.
        steps: Optimizer steps.
        rows: Rows of each set.
        ids: What the ids begin with.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    given = {
        "model": "org/base",
        "forget": "forget.jsonl",
        "retain": "retain.jsonl",
        "output": str(folder),
        "seed": seed,
    }
    resolved = {
        "epochs": 14,
        "learning_rate": 0.0015,
        "prompt_format": "space",
        "end_of_text": "yes",
        "dtype": "float32",
        "device": "cpu",
    }
    config = UnlearnConfig(recipe="default", **given | resolved | (settings or {}))
    losses = {name: {"before": before, "after": after} for name, (before, after, _) in ENDS.items()}
    content = {
        "schema": 1,
        "status": "done",
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:09:05+00:00",
        "settings": {field.name: getattr(config, field.name) for field in fields(config) if field.name not in UNSAVED},
        "data": {name: hashlib.sha256(name.encode()).hexdigest() for name in ENDS},
        "model_sha256": hashlib.sha256(b"model").hexdigest(),
        "adapter_sha256": hashlib.sha256(str(seed).encode()).hexdigest(),
        "rows": dict.fromkeys(ENDS, rows),
        "tokens": dict.fromkeys(ENDS, rows * 31),
        "prompt_format": {"chosen": "space, with end-of-text"},
        "terms": [
            {
                "name": "forget",
                "weight": 1.0,
                "formula": "(2/beta) mean_t softplus(-beta s_t)",
                "source": "Z",
            },
            {"name": "retain_nll", "weight": 2.0, "formula": "mean_t -log p(y_t)", "source": "B"},
            {"name": "replay_kl", "weight": 0.0, "formula": "", "source": "ours"},
        ],
        "warnings": [],
        "versions": {"python": "3.11.7", "expunge": "0.1.0", "torch": "2.13.0"},
        "hardware": {"device": "cpu", "name": "x86_64", "threads": 1},
        "steps": steps,
        "loss_nats_per_completion_token": losses,
        "loss_texts": dict.fromkeys(ENDS, rows),
        "training_seconds": 61.5,
        "total_seconds": 75.25,
        "peak_memory_bytes": 3 * 2**28,
    }
    (folder / "manifest.json").write_text(json.dumps(content | (manifest or {})))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in _steps(steps, rng)))
    if scored:
        for place, role in enumerate(ROLES):
            _write_role(folder / f"results_{role}.json", place, metrics or {}, rows, ids, seed)
    return folder


def entry(value: float, direction: str | None = "higher", family: str = "utility", *, n: int = 60) -> dict[str, Any]:
    """One entry of `metrics`, with an interval that becomes narrower with `n`."""
    half = 1.96 * math.sqrt(max(abs(value) * abs(1 - value), 1e-4) / n)
    return {
        "value": value,
        "low": max(0.0, value - half),
        "high": value + half if value + half <= 1 or value > 1 else 1.0,
        "n": n,
        "direction": direction,
        "source": "a paper",
        "family": family,
    }


def _write_role(path: Path, place: int, extra: dict[str, dict[str, Any]], rows: int, ids: str, seed: int) -> None:
    rng = np.random.default_rng([seed if place == 1 else 0, place])
    found = {}
    for name, (*values, direction, family) in LEVELS.items():
        value = min(1.0, max(0.0, values[place] + (rng.normal(0, 0.003) if place == 1 else 0.0)))
        value = round(value * rows) / rows if name == "forget/exact_match" else value  # a count of rows
        found[name] = entry(value, direction, family, n=rows)
        for task in PER_TASK if name.endswith(("recall", "match")) else ():
            level = min(1.0, max(0.0, value + rng.normal(0, 0.01)))
            found[f"{name}/{task}"] = entry(level, direction, family, n=rows // 3)
    auc = (1.0, 0.58, 0.5)[place]
    found["membership/loss_auc"] = entry(auc, "target", "membership", n=rows) | {"target": 0.5}
    subject = {"base": hashlib.sha256(b"model" if place < 2 else b"retrained").hexdigest()}
    subject |= {"adapter": hashlib.sha256(str(seed).encode()).hexdigest()} if place == 1 else {}
    results = {"schema": 1, "benchmark": "tofu", "model": "org/base", "metrics": found | extra, "not_measured": []}
    results["fingerprint"] = subject
    table: dict[str, list[Any]] = {"id": [], "set": [], "task": [], "document": [], "metric": [], "value": []}
    for name, ends in ENDS.items():
        for i, loss in enumerate(ends[place] * np.exp(rng.normal(0, 0.25, rows))):
            key = f"{ids}-{name}-{i}"
            for metric in ("nll", "document_nll") if name in ("forget", "holdout") else ("nll",):
                for column, cell in zip(table.values(), (key, name, "Task1", key, metric, float(loss)), strict=True):
                    column.append(cell)
    pq.write_table(pa.table(table), path.with_suffix(".parquet"))
    write_json(path, results)


def _steps(count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    done = (np.arange(count) + 1) / count
    steps = [
        {
            "step": i + 1,
            "epoch": 1 + i // 10,
            "loss": float(3 - share),
            "forget": float(2.7 * np.exp(-2 * share) + rng.normal(0, 0.05)),
            "retain_nll": float(0.05 + 0.1 * np.exp(-5 * share) + abs(rng.normal(0, 0.01))),
            "replay_kl": 0.0,
            "grad_norm": 1.0,
            "learning_rate": 0.001 * float(1 - share / 2),
            "tokens": 1000,
        }
        for i, share in enumerate(done)
    ]
    for step in steps[29::30]:
        share = step["step"] / count
        targets = {"forget_nll": 1.3, "auc": 0.5}
        step["validation"] = {"forget_nll": 1.3 * share, "auc": 1 - 0.5 * share, "targets": targets}
    return steps
