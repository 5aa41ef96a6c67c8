"""What a run has recorded, checked as a whole by whoever reads it, and whether its adapter is still the same."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from expunge.config import UnlearnConfig
from expunge.config.checks import check_types
from expunge.errors import ConfigError, RunError
from expunge.utils import files, listing
from expunge.utils.reading import NUMBER, Each, UnreadableError, check_fields, read_lines, read_object

MAYBE = (*NUMBER, NoneType)
FIELDS = {
    "status": str,
    "settings": dict,
    "start?": {"output?": str},
    "data": Each(str),
    "model_sha256": str,
    "texts?": Each(str),
    "rows?": Each(int),
    "tokens?": Each(int),
    "versions?": Each(str),
    "hardware?": Each((str, int)),
    "base?": {"id?": (str, NoneType)},
    "prompt_format?": {"chosen": str},
    "terms?": [{"name": str, "weight": NUMBER, "formula": str, "source": str}],
    "warnings?": [str],
    "unseen_doubts?": [str],
    "started?": str,
    "finished?": str,
    "steps?": (int, NoneType),
    "timed_steps?": int,
    "ended?": str,
    "loss_nats_per_completion_token?": Each({"before": MAYBE, "after": MAYBE}),
    "loss_texts?": Each(int),
    "selection?": (dict, NoneType),
    "contexts?": (dict, NoneType),
    "training_seconds?": NUMBER,
    "total_seconds?": NUMBER,
    "peak_memory_bytes?": NUMBER,
    "adapter_base?": (str, NoneType),
    "adapter_sha256?": str,
    "adapter_fingerprint?": str,
}
DONE = {
    "settings": {"model": str},
    "rows": {"forget": int},
    "versions": {"expunge": str},
    "steps": int,
    "loss_nats_per_completion_token": dict,
    "loss_texts": {"forget": int},
}
"""What that of a finished run holds; who repeats a run needs its settings alone."""
NOT_A_METHOD = {"seed", "device", "title", "revision", "compile", "gradient_checkpointing"}
"""Settings that do not make another configuration: of the model its hash counts, and faster or smaller is no other."""
DATA_FILES = {"forget", "retain", "holdout", "instead", "data", "origin", "columns", "test"}
"""Settings that name files and columns of the data."""
ENDINGS = (".jsonl", ".json", ".parquet", ".csv", ".yaml", ".yml", ".txt")
SELECTION = {"stopped?": str, "best_step?": int, "scale?": NUMBER, "verdict?": str}
CALIBRATION = "calibration.json"
CALIBRATION_FIELDS = {
    "trained_alpha": NUMBER,
    "scale": NUMBER,
    "selection_hmac": [str],
    "trained_alpha_pattern?": Each(NUMBER),
    "best_step?": int,
    "stopped?": str,
    "verdict?": str,
    "curve?": [{"scale": NUMBER}],
    "targets?": Each((*NUMBER, type(None))),
}
STEP = {"step": int, "tokens?": int}
ALL_DONE = "all steps are done"
"""Why a run ended that nothing has stopped."""
VERDICT = "verdict.json"
"""In a run: what it was judged to be by the scores that were there; it goes before these change."""
MERGED = "expunge_merge.json"
"""In a merged model: what it is made of, and its files, which are all that `--overwrite` may remove."""
MERGED_FIELDS = {
    "files": [str], "adapter_fingerprint?": (str, NoneType), "merged_sha256?": str, "model_sha256?": str,
}  # fmt: skip
WEIGHTS = "adapter_model.safetensors"
UNUSED = ("base_model_name_or_path", "revision", "peft_version", "inference_mode", "auto_mapping")
"""Settings of an adapter that change nothing of what it computes."""


def read_manifest(path: Path | str, flag: str = "") -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        RunError: It cannot be read; the message begins with `flag`.
    """
    files.settle(Path(path).parent)
    try:
        manifest = read_object(path, fields=FIELDS)
        check_fields(manifest, DONE if manifest["status"] == "done" and flag != "--from-manifest" else {})
        check_fields(manifest.get("selection") or {}, SELECTION)
        _check_settings(manifest["settings"], manifest.get("start", {}))
        return manifest
    except UnreadableError as error:
        reason = f"damaged or no manifest ({error})"
    except RunError as error:
        reason = str(error).removeprefix(f"{path}: ")
    mend = "start again with --overwrite or in another --output" if flag == "--resume" else "give another one"
    raise RunError(f"{flag}{': ' if flag else ''}{path}: {reason}: {mend}")


def _check_settings(settings: dict[str, Any], start: dict[str, Any]) -> None:
    """Look whether settings that are known here are of their types (choices may be those of another version), and
    whether both parts say the same of one: of the device, `settings` have the kind alone.
    """
    at_start = start | ({"device": str(start["device"]).partition(":")[0]} if "device" in start else {})
    if told_apart := [name for name, now in at_start.items() if settings.get(name, now) != now]:
        raise UnreadableError(f"its settings and its start say different things of {told_apart[0]}")
    settings = settings | start
    kinds = {field.name: str(field.type) for field in dataclasses.fields(UnlearnConfig)}
    known = {
        name: value
        for name, value in settings.items()
        if name in kinds and not (isinstance(value, str) and "Literal" in kinds[name])
    }
    try:
        check_types(UnlearnConfig(**{"model": "", **known}))
    except ConfigError as error:
        raise UnreadableError(f"the setting {str(error).split()[0]} is of another type") from None


def read_calibration(folder: Path) -> dict[str, Any] | None:
    """The calibration of a run, or None. One without a verdict tells of an adapter as it was trained.

    Raises:
        RunError: It cannot be read.
    """
    file = folder / CALIBRATION
    if not file.exists():
        return None
    return read_object(file, fields=CALIBRATION_FIELDS)


def read_steps(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's metrics.jsonl.

    Raises:
        RunError: One of them is not what a run writes.
    """
    for number, line in read_lines(path):
        try:
            check_fields(line, STEP)
        except UnreadableError as error:
            raise RunError(f"{path}: line {number} is damaged ({error})") from None
        yield line


def adapter_fingerprint(folder: Path) -> str:
    """SHA-256 over all that an adapter computes with: weights, scale, ranks, places, and a base of its own if any.

    Raises:
        RunError: A file of it cannot be read.
    """
    return adapter_hashes(folder)["adapter_fingerprint"]


def adapter_hashes(folder: Path) -> dict[str, str]:
    """What the manifest has of an adapter, whose files are read once: `adapter_fingerprint`, and of its weights alone
    `adapter_sha256`.

    Raises:
        RunError: A file of it cannot be read.
    """
    parts, weights = [], ""
    for path in sorted(folder.rglob("*.safetensors")) + sorted(folder.rglob("*config.json")):
        name = path.relative_to(folder).as_posix()
        if path.name == "adapter_config.json":
            settings = {key: _plain(value) for key, value in read_object(path).items() if key not in UNUSED}
            kept = {key: value for key, value in settings.items() if value not in (None, False, [], {})}
            parts += [name, json.dumps(kept, sort_keys=True)]
        elif path.suffix == ".safetensors" or path.name == "config.json":
            parts += [name, files.sha256_file(path)]
            weights = parts[-1] if name == WEIGHTS else weights
    return {"adapter_sha256": weights, "adapter_fingerprint": files.fingerprint(*parts)}


def _plain(value: Any) -> Any:
    """A setting as it is compared: 4.0 is 4, and names in a list, which PEFT writes in any order, are sorted."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return sorted(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def merged_from(model: str, fingerprint: str, part: str = "adapter_fingerprint") -> str | None:
    """What a merged model was made of; None of any other model, or a changed one.

    Args:
        model: The model.
        fingerprint: Of its weights and configuration as they are.
        part: The fingerprint of the adapter, or that of the base, `model_sha256`.
    """
    file = Path(model) / MERGED
    if not file.is_file():
        return None
    note = read_object(file, fields=MERGED_FIELDS)
    return note.get(part) if note.get("merged_sha256") == fingerprint else None


def foreign_files(merged: Path) -> list[str]:
    """What lies in a merged model's folder and was not written by `expunge merge`: relative names.

    Raises:
        RunError: Its list cannot be read.
    """
    written = set(read_object(merged / MERGED, fields=MERGED_FIELDS)["files"])
    return [name for name in listing.files_below(merged) if name not in written]


def check_adapter_kept(run: Path, manifest: dict[str, Any], flag: str = "") -> str | None:
    """The fingerprint of a run's adapter, which must be the one that its manifest was written for; None without one.

    Raises:
        RunError: Its weights, its settings (scale, ranks, places) or its calibration are others, or cannot be read.
    """
    where, folder = f"{flag} {run}".strip(), run / "adapter"
    if not (folder / WEIGHTS).is_file() or not (folder / "adapter_config.json").is_file():
        return None
    found = adapter_hashes(folder)
    if any(manifest.get(name, now) != now for name, now in found.items()):
        raise RunError(
            f"{where}: its adapter is not the one that the manifest was written for (weights or adapter_config.json "
            "were changed): put that one back"
        )
    calibration, selection = read_calibration(run), manifest.get("selection")
    if calibration and selection:
        adapter = folder / "own" if (folder / "own").is_dir() else folder
        alpha = read_object(adapter / "adapter_config.json", fields={"lora_alpha": NUMBER})["lora_alpha"]
        scales = calibration["scale"], alpha / (calibration["trained_alpha"] or 1.0)
        if not all(math.isclose(scale, selection.get("scale", scale), rel_tol=1e-6) for scale in scales):
            raise RunError(f"{where}: {CALIBRATION} is not of the adapter that is there: put that one back")
    return found["adapter_fingerprint"]


def without_files(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that name a file, whatever they are called: hashes stand for the texts in them."""
    return {name: value for name, value in settings.items() if name == "model" or not _names_a_file(name, value)}


def method_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that make a method: without files, seed, device and the like."""
    found = {name: value for name, value in without_files(settings).items() if name not in NOT_A_METHOD}
    if settings.get("benchmark") and "retain_test" in found:  # no text of a benchmark is set apart where nobody says so
        found["retain_test"] = found["retain_test"] or 0.0
    return found


def _names_a_file(name: str, value: Any) -> bool:
    return name in DATA_FILES or (isinstance(value, str) and ("/" in value or "\\" in value or value.endswith(ENDINGS)))
