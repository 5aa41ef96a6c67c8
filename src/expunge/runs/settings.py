"""The resolved settings of a run: in its manifest, which commands go on from, and for people in `config.yaml`."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from expunge.config import UnlearnConfig
from expunge.config.nested import by_group
from expunge.errors import ConfigError, RunError
from expunge.runs.directory import is_staged, staged
from expunge.runs.record import read_manifest
from expunge.utils import files
from expunge.utils.reading import read_object

FILE = "config.yaml"
ONE_START = {"overwrite", "resume", "finish", "dry_run", "from_manifest", "trust_remote_code"}
"""What is said about one start of a run alone, and recorded nowhere: trust in a model's code least of all."""


def recorded(config: UnlearnConfig) -> dict[str, Any]:
    """The settings as a run records them."""
    return {
        name: str(value) if isinstance(value, str) else value  # of texts in memory, the name alone
        for name, value in dataclasses.asdict(config).items()
        if name not in ONE_START
    }


def write_settings(run: Path, config: UnlearnConfig) -> None:
    """Write `config.yaml`.

    Raises:
        RunError: The system refuses.
    """
    files.write_text(run / FILE, yaml.safe_dump(by_group(recorded(config)), sort_keys=False), overwrite=True)


def check_finished(run: Path | str, flag: str = "--run") -> None:
    """Refuse a run that was started and has not come to its end.

    Raises:
        RunError: So; the message begins with `flag`.
    """
    try:
        status = read_object(Path(run) / "manifest.json").get("status")
    except RunError:
        return  # none, or a damaged one: whoever needs it says so
    if status == "running":
        raise RunError(
            f"{flag} {run}: is not finished: `expunge unlearn --resume --output {run}` goes on with it, "
            "--resume --finish ends it where it is"
        )


def run_settings(run: str, **texts: str | None) -> UnlearnConfig:
    """The settings of a finished run.

    Args:
        run: Its directory.
        texts: Where sets of texts are now (`forget=...`), as far as they are not where they were.

    Raises:
        RunError: It is none, or its settings are not what a run writes.
        ConfigError: It has no use for one of the `texts`.
    """
    check_finished(run)
    path = Path(run) / "manifest.json"
    if not path.exists() or not (Path(run) / "adapter" / "adapter_config.json").exists():
        raise RunError(f"--run {run}: not a finished run (it needs manifest.json and adapter/)")
    found = _settings_in(path, "--run")
    try:
        config = UnlearnConfig(**found)
        config.validate()
    except (ConfigError, TypeError):
        raise RunError(
            f"{path}: not the settings of a run, it is damaged or from another version: use the one that it names "
            "under `versions`, or make the run again"
        ) from None
    config = config.changed(**{name: place for name, place in texts.items() if place})
    config.validate()
    return config


def elsewhere(found: dict[str, Any], model: str | None) -> dict[str, Any]:
    """Recorded settings without the revision of a name on the Hub where a folder is given in its place."""
    return found | {"revision": None} if model and Path(model).exists() else found


def recorded_settings(name: str, model: str | None = None) -> dict[str, Any]:
    """The settings in the manifest that --from-manifest names, for `model` where one is given.

    Raises:
        RunError: It cannot be read, or holds settings that are unknown here.
    """
    return elsewhere(_settings_in(name, "--from-manifest", ["settings"]), model)


def resumed_settings(output: str, model: str | None = None) -> dict[str, Any]:
    """The settings of the run in a directory that is to be gone on with, however many processes share the base this
    time, for `model` where one is given; nothing where none are recorded.

    Raises:
        RunError: They cannot be read, or some are unknown here.
    """
    path = (staged(Path(output)) if is_staged(Path(output)) else Path(output)) / "manifest.json"
    if not path.is_file():
        return {}
    found = _settings_in(path, "--resume")
    found.pop("shard_base", None)
    return elsewhere(found, model)


def _settings_in(path: Path | str, flag: str, parts: Iterable[str] = ("settings", "start")) -> dict[str, Any]:
    """The settings in a manifest.

    Raises:
        RunError: It cannot be read, or one of them is unknown here.
    """
    manifest = read_manifest(path, flag)
    found = {name: value for part in parts for name, value in manifest.get(part, {}).items() if name not in ONE_START}
    if unknown := sorted(found.keys() - {field.name for field in dataclasses.fields(UnlearnConfig)}):
        made = manifest.get("versions", {}).get("expunge", "it does not say which")
        raise RunError(
            f"{flag} {path}: holds settings of another version of Expunge ({unknown[0]}): use the one that it was made "
            f"with ({made}), or make the run again"
        )
    return found
