"""What a run directory holds, read for the report; everything beyond the manifest is optional."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.errors import DataError, RunError
from expunge.evaluation.results import measured_metrics, read_results
from expunge.utils.files import adapter_fingerprint

ROLES = {
    "before": ("results_before.json",),
    "after": ("results_after.json", "results.json"),
    "reference": ("results_retrained.json", "results_reference.json"),
}
"""Which results file plays which part; the first that is there counts."""
STEP_FIELDS = ("step", "epoch", "loss", "grad_norm", "learning_rate", "tokens")
"""What a line of metrics.jsonl holds about a step beside its terms; other numbers in it are selection signals."""

Values = Mapping[tuple[str, str], Mapping[str, float]]
"""(set, metric) -> id -> value."""


@dataclass(frozen=True)
class RunData:
    """One run directory.

    Attributes:
        path: The folder.
        name: What the page calls it.
        manifest: Content of manifest.json.
        steps: Lines of metrics.jsonl.
        results: `before`, `after`, `reference` -> content of the results file, where there is one.
        checkpoints: Name -> content of any further results file of the same benchmark, such as those of checkpoints.
        values: Role -> per-example values.
        files: Role -> results file.
        calibration: Content of calibration.json; empty where the adapter has the strength that it was trained with.
        outdated: Results files that are left out, because they are of another strength or another adapter.
    """

    path: Path
    name: str
    manifest: dict[str, Any]
    steps: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    checkpoints: dict[str, dict[str, Any]] = field(default_factory=dict)
    values: dict[str, Values] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    outdated: list[str] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        """The resolved settings."""
        return self.manifest.get("settings", {})

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.manifest.get("status") == "done"

    @property
    def losses(self) -> dict[str, dict[str, float]]:
        """Set -> `before`, `after` in nats per completion token."""
        return self.manifest.get("loss_nats_per_completion_token", {})


def read_run(path: str | Path) -> RunData:
    """Read one run directory.

    Raises:
        RunError: Not a run directory, or its manifest or metrics.jsonl is damaged.
        DataError: A results file or a file of per-example values is damaged.
    """
    path = Path(path)
    manifest = _manifest(path)
    results, values, files, outdated = {}, {}, {}, []
    own = adapter_fingerprint(path / "adapter") if (path / "adapter" / "adapter_config.json").is_file() else None
    for role, names in ROLES.items():
        file = next((path / name for name in names if (path / name).is_file()), None)
        if file is None:
            continue
        files[role] = file
        found = _results(file)
        if own and (found.get("fingerprint") or {}).get("adapter") not in (None, own):
            outdated.append(file.name)
            continue
        results[role] = found
        if file.with_suffix(".parquet").is_file():
            values[role] = read_values(file.with_suffix(".parquet"))
    checkpoints = {}
    for file in sorted(path.glob("results*.json")):
        if file in files.values():
            continue
        further = _results(file)
        if further["benchmark"] == results.get("after", further)["benchmark"]:
            checkpoints[file.stem.removeprefix("results").strip("_-.") or file.stem] = further
    name = path.name or path.resolve().name
    steps, calibration = _steps(path / "metrics.jsonl"), _calibration(path / "calibration.json")
    return RunData(path, name, manifest, steps, results, checkpoints, values, files, calibration, outdated)


def read_values(path: Path) -> Values:
    """Per-example values: a Parquet file with the columns id, set, metric, value (and task).

    Raises:
        DataError: It is something else.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["id", "set", "metric", "value"]).to_pydict()
    except (pa.ArrowException, OSError, KeyError):
        raise DataError(f"{path}: not a file of per-example values: evaluate the model again") from None
    found: dict[tuple[str, str], dict[str, float]] = {}
    for identity, split, metric, value in zip(*table.values(), strict=True):
        if isinstance(value, int | float) and math.isfinite(value):
            found.setdefault((str(split), str(metric)), {})[str(identity)] = float(value)
    return found


def _results(file: Path) -> dict[str, Any]:
    results = read_results(file)
    measured_metrics(file, results)  # whatever is wrong with an entry is said here, with the file's name
    return results


def _manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    if not file.is_file():
        raise RunError(f"{path}: not a run directory (no manifest.json): give the --output of `expunge unlearn`")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("settings"), dict):
        raise RunError(f"{file}: damaged: the report needs the manifest that the run wrote")
    for name in ("loss_nats_per_completion_token", "rows", "tokens", "data", "versions", "hardware"):
        if not isinstance(manifest.get(name, {}), dict):
            raise RunError(f"{file}: damaged: {name} must be a mapping")
    for name, pair in manifest.get("loss_nats_per_completion_token", {}).items():
        if not isinstance(pair, dict) or not {"before", "after"} <= pair.keys():
            raise RunError(f"{file}: damaged: no losses before and after of {name!r}")
    return manifest


def _calibration(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("scale"), int | float):
        raise RunError(f"{path}: damaged: the report needs the file that `expunge calibrate` wrote")
    return content


def _steps(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    steps = []
    for number, line in enumerate(lines, 1):
        try:
            step = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                break  # a run that is killed may leave a part of its last line
            raise RunError(f"{path}: line {number} is damaged: the report needs the file that the run wrote") from None
        if isinstance(step, dict) and isinstance(step.get("step"), int):
            steps.append(step)
    return steps
