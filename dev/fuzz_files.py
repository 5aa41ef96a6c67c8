"""The readers of files that are no data sets, for `dev.fuzz`: a good file of each kind, and who reads it."""

import atexit
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import save

HMAC = "0" * 64


def settings_yaml(rng: random.Random) -> bytes:
    """A settings file, flat or in groups."""
    import yaml

    from expunge.config import UnlearnConfig
    from expunge.config.nested import by_group
    from expunge.runs.settings import recorded

    settings = recorded(UnlearnConfig(model="m", forget="f.jsonl", retain="r.jsonl", output="o", seed=rng.randrange(9)))
    return yaml.safe_dump(by_group(settings) if rng.random() < 0.5 else settings).encode()


def manifest(rng: random.Random) -> bytes:
    """A manifest."""
    term = {"name": "forget", "weight": rng.random(), "formula": "-log p", "source": "here"}
    content = {
        "status": "done",
        "settings": {"model": "m"},
        "data": {"forget": HMAC},
        "model_sha256": "0",
        "terms": [term],
    }
    losses = {"forget": {"before": 1.0, "after": 2.0}}
    content |= {"steps": 3, "loss_nats_per_completion_token": losses, "loss_texts": {"forget": 3}}
    content |= {"start": {"output": "o", "save_every": 100, "device": "cpu"}}
    return json.dumps({**content, "rows": {"forget": 3}, "versions": {"expunge": "0.1.0"}}).encode()


def results(rng: random.Random) -> bytes:
    """A results file."""
    metric = {"value": rng.random(), "low": 0.1, "high": 0.9, "n": 5, "direction": "lower", "family": "memorization"}
    return json.dumps({"schema": 1, "benchmark": "custom", "metrics": {"forget/nll": metric}, "data": {}}).encode()


def calibration(rng: random.Random) -> bytes:
    """A calibration."""
    return json.dumps({"scale": rng.random(), "trained_alpha": 4, "selection_hmac": [f"abcd1234:{HMAC}"]}).encode()


def metrics(rng: random.Random) -> bytes:
    """A log."""
    return b"".join(json.dumps({"step": i, "loss": rng.random()}).encode() + b"\n" for i in range(rng.randrange(5)))


def adapter_config(rng: random.Random) -> bytes:
    """An adapter's settings."""
    return json.dumps(
        {"base_model_name_or_path": "m", "r": rng.choice([2, 4]), "lora_alpha": 4, "rank_pattern": {"q_proj": 2}}
    ).encode()


def weights(rng: random.Random) -> bytes:
    """A file of weights."""
    import torch

    return save({f"w{i}": torch.zeros(rng.randrange(1, 4), 2) for i in range(rng.randrange(3))})


def model_config(rng: random.Random) -> bytes:
    """A model's configuration."""
    return json.dumps({"model_type": "llama", "num_hidden_layers": rng.choice([1, 2]), "hidden_size": 8}).encode()


def journal(rng: random.Random) -> bytes:
    """The list of a transaction."""
    return json.dumps([[".expunge-a-abcd1234", "a"]] * rng.randrange(3)).encode()


def listing(rng: random.Random) -> bytes:
    """The list of a run's files."""
    return b"".join(json.dumps(name).encode() + b"\n" for name in rng.sample(["a", "b/c", "d/", "e"], 3))


def merged_note(rng: random.Random) -> bytes:
    """What stands in a merged model."""
    return json.dumps({"files": ["config.json"], "adapter_fingerprint": HMAC, "merged_sha256": HMAC}).encode()


def lock(rng: random.Random) -> bytes:
    """The lock of a run."""
    return json.dumps({"host": "there", "process": 1, "since": "2026-01-01"}).encode()


def predictions(rng: random.Random) -> bytes:
    """Predictions of one split."""
    line = {"id": "a", "task": "Task1", "kind": "qa", "expected_output": "b", "model_output": "c"}
    return json.dumps(line).encode() + b"\n"


@cache
def _run() -> Path:
    """A run that has been scored and calibrated."""
    from report_runs import write_run

    folder = Path(tempfile.mkdtemp(prefix="expunge-fuzz-")) / "run"
    atexit.register(shutil.rmtree, folder.parent)
    write_run(folder, rows=6, steps=9, settings={"forget": "f", "retain": "r"})
    (folder / "calibration.json").write_bytes(calibration(random.Random(0)))
    return folder


def _of_run(name: str) -> Callable[[random.Random], bytes]:
    """A file of a whole run."""
    return lambda rng: (_run() / name).read_bytes()


_drawn: set[str] = set()
"""Files of runs beside which figures were drawn once."""


def _read_run(path: Path) -> None:
    """Whoever reads a run of which one file is another: verdict, page, card, comparison, evaluation."""
    from expunge.config import EvaluateConfig
    from expunge.evaluation.checks import resolved
    from expunge.evaluation.compare import compare
    from expunge.evaluation.compare_formats import FORMATS
    from expunge.report.groups import group_runs
    from expunge.report.page import Drawings, draw, render
    from expunge.report.run_data import read_run
    from expunge.report.write import scored_card

    run = path.parent
    shutil.copytree(_run(), run, dirs_exist_ok=True, ignore=shutil.ignore_patterns(path.name))
    resolved(EvaluateConfig(run=str(run), benchmark="custom")).validate()
    FORMATS["table"](compare([str(run / "results_before.json"), str(run / "results_after.json")]))
    data = read_run(run)
    groups = group_runs([data])
    draws = path.name not in _drawn or random.random() < 0.02  # figures take a second, and the first ones more
    drawings = draw(groups) if draws else Drawings()
    _drawn.add(path.name)
    render(groups, drawings)
    if "after" in data.scores:
        scored_card(data)


def _read_merged_note(path: Path) -> None:
    from expunge.runs.record import merged_from

    merged_from(str(path.parent), HMAC)


def _read_lock(path: Path) -> None:
    from expunge.runs.lock import Lock

    Lock(path.parents[1]).release()


def _read_predictions(path: Path) -> None:
    from expunge.evaluation.predictions import read_any

    shutil.copy(path, path.with_name("retain.jsonl"))
    read_any(path.parent)


def _read_settings(path: Path) -> None:
    from expunge.cli.settings import read_config, settings_of
    from expunge.config import UnlearnConfig

    UnlearnConfig(**{"model": "m", **read_config(str(path), settings_of(UnlearnConfig), "unlearn")}).validate()


def _read_manifest(path: Path) -> None:
    from expunge.runs.card import model_card
    from expunge.runs.record import read_manifest
    from expunge.runs.settings import recorded_settings, resumed_settings

    found = read_manifest(path, "--run")
    if found["status"] == "done":
        model_card(found)
    recorded_settings(str(path))
    resumed_settings(str(path.parent))


def _read_results(path: Path) -> None:
    from expunge.evaluation.results import measured_metrics, read_results

    measured_metrics(path, read_results(path))


def _read_calibration(path: Path) -> None:
    from expunge.runs.record import read_calibration

    read_calibration(path.parent)


def _read_metrics(path: Path) -> None:
    from expunge.utils.reading import read_lines

    list(read_lines(path))


def _read_adapter_config(path: Path) -> None:
    from expunge.model.declared import check_adapter_config

    check_adapter_config(path.parent, {"w": {"shape": [4, 2]}})


def _read_weights(path: Path) -> None:
    from expunge.model.files import header_of

    header_of(path)


def _read_model_config(path: Path) -> None:
    from expunge.model.declared import check_folder

    check_folder(path.parent, [{"w": {"shape": [4, 2]}, "v": {"shape": [2]}}])


def _read_journal(path: Path) -> None:
    from expunge.utils.files import settle

    settle(path.parent)


def _read_listing(path: Path) -> None:
    from expunge.utils.listing import listed, unlisted

    listed(path.parents[1])
    unlisted(path.parents[1])


KINDS: dict[str, tuple[Callable[[random.Random], bytes], str, Callable[[Path], Any]]] = {
    "settings": (settings_yaml, "file", _read_settings),
    "manifest": (manifest, "manifest.json", _read_manifest),
    "results": (results, "file", _read_results),
    "calibration": (calibration, "calibration.json", _read_calibration),
    "metrics": (metrics, "file", _read_metrics),
    "adapter config": (adapter_config, "adapter_config.json", _read_adapter_config),
    "weights": (weights, "file", _read_weights),
    "model config": (model_config, "config.json", _read_model_config),
    "transaction": (journal, ".expunge-commit-abcd1234", _read_journal),
    "list of files": (listing, ".expunge/files", _read_listing),
    "merged note": (merged_note, "expunge_merge.json", _read_merged_note),
    "lock": (lock, ".expunge/lock", _read_lock),
    "predictions": (predictions, "forget.jsonl", _read_predictions),
    "manifest of a run": (_of_run("manifest.json"), "manifest.json", _read_run),
    "log of a run": (_of_run("metrics.jsonl"), "metrics.jsonl", _read_run),
    "results of a run": (_of_run("results_after.json"), "results_after.json", _read_run),
    "values of a run": (_of_run("results_after.parquet"), "results_after.parquet", _read_run),
    "calibration of a run": (calibration, "calibration.json", _read_run),
}
"""Kind -> a good file, where it stands in a folder, and who reads it there."""
