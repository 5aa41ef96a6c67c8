"""`config.yaml` of a run: the resolved settings, written once and read by the commands that go on from a run."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from expunge.config import UnlearnConfig
from expunge.config.nested import by_group, flat
from expunge.errors import ConfigError, RunError
from expunge.runs.directory import is_staged, staged
from expunge.utils import files
from expunge.utils.reading import UnreadableError, parse_yaml, read_object

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
    path = Path(run) / FILE
    if not path.exists() or not (Path(run) / "adapter" / "adapter_config.json").exists():
        raise RunError(f"--run {run}: not a finished run (it needs {FILE} and adapter/)")
    with _as_written(path):
        config = UnlearnConfig(**_read(path))
        config.validate()
    config = config.changed(**{name: place for name, place in texts.items() if place})
    config.validate()
    return config


def elsewhere(found: dict[str, Any], model: str | None) -> dict[str, Any]:
    """Recorded settings without the revision of a name on the Hub where a folder is given in its place."""
    return found | {"revision": None} if model and Path(model).exists() else found


def resumed_settings(output: str, model: str | None = None) -> dict[str, Any]:
    """The settings of the run in a directory that is to be gone on with, however many processes share the base this
    time, for `model` where one is given; nothing where none are recorded.

    Raises:
        RunError: They are not what a run writes.
    """
    folder = staged(Path(output)) if is_staged(Path(output)) else Path(output)
    path = folder / FILE
    if not path.is_file():
        return {}
    with _as_written(path):
        found = {name: value for name, value in _read(path).items() if name != "shard_base"}
        UnlearnConfig(**found)
    return elsewhere(found, model)


def started_as(folder: Path) -> str:
    """The `--output` that a run was started with; empty where none is recorded.

    Raises:
        RunError: Its settings are not what a run writes.
    """
    path = folder / FILE
    if not path.is_file():
        return ""
    with _as_written(path):
        return str(_read(path).get("output") or "")


@contextmanager
def _as_written(path: Path) -> Iterator[None]:
    """Turn what comes of settings that no run has written into one clear line."""
    try:
        yield
    except (UnreadableError, TypeError, AttributeError, ConfigError):
        raise RunError(f"{path}: not the settings of a run, it is damaged or from another version") from None


def _read(path: Path) -> dict[str, Any]:
    return {name: value for name, value in flat(parse_yaml(path.read_bytes())).items() if name not in ONE_START}
