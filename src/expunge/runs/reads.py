"""Every path that a command reads, from the words of its flags to the files behind them.

`--model` may be an adapter on an adapter on a base; a data set may be FOLDER:SPLIT; any name may be a link. Who
asks whether an output would destroy an input, or whether an input is still the same, asks here.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from expunge.errors import ConfigError, ModelError, RunError
from expunge.model.source import places

Reads = Mapping[str, str | Path | Iterable[str | Path] | None]
"""Flag -> what it was given."""
ModelState = dict[str, tuple[int, int, int]]
MODELS = {"model", "origin", "reference", "adapter", "run"}
"""Flags that name a model."""


def model_folders(name: str) -> list[Path]:
    """The folder of a model, and where it is an adapter those of its base, of the base's base and so on.

    A GGUF file stands for itself, and a model from the Hub is the folder of its copy in the cache, where there is one.
    """
    found = (Path(place) if Path(place).exists() else _cached(place) for place in places(name))
    return [place for place in found if place]


def model_state(*names: str | None) -> ModelState:
    """Sizes, times and identities of the files of models, to see whether they were changed while they were read.

    A model from the Hub has none: its files may come while it is read, and its commit says what is in them.
    """
    found: ModelState = {}
    given = (Path(place) for name in names if name for place in places(name))
    for place in (root for root in given if root.exists()):
        for path in place.iterdir() if place.is_dir() else [place]:
            with suppress(FileNotFoundError):  # a link to nothing, or a file that has just gone
                status = path.stat()
                found[str(path)] = status.st_size, status.st_mtime_ns, status.st_ino
    return found


def check_unchanged(before: ModelState, *names: str | None) -> None:
    """Refuse models whose files are not those of `model_state` any more: what was loaded has no name then.

    Raises:
        ModelError: So.
    """
    if model_state(*names) != before:
        raise ModelError(f"--model {names[0]}: its files were changed while they were read: start again")


def _cached(name: str) -> Path | None:
    """The folder of a model from the Hub in the cache."""
    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # no name that the Hub could have
        return None
    return Path(found).parent if isinstance(found, str) else None


def data_path(source: str | Path) -> Path | None:
    """The file or folder behind the name of a data set; None for one on the Hub."""
    path = Path(source)
    if _identity(path):
        return path
    folder = Path(str(source).rpartition(":")[0])
    return folder if folder.name and _identity(folder) else None


def paths(flag: str, value: str | Path) -> list[Path]:
    """The paths behind the value of one flag."""
    if flag in MODELS:
        given = Path(value)
        adapter = given / "adapter" if (given / "adapter" / "adapter_config.json").is_file() else given
        return [*([given] if given.is_dir() else []), *model_folders(str(adapter))]
    found = data_path(value)
    return [found] if found else []


def check_apart(output: str | Path, reads: Reads) -> None:
    """Refuse an output in whose place or folder something stands that the command reads.

    Args:
        output: The file or folder to be written.
        reads: Flag, as its setting is called -> what it was given; what was not given is None.

    Raises:
        ConfigError: So; the message names the flag and the path.
    """
    identity = _identity(Path(output))
    if identity is None:
        return
    for flag, value in reads.items():
        values = [value] if isinstance(value, str | Path) else (value or [])
        for name in values:
            for path in paths(flag, name):
                for file in _files(path):
                    if any(_identity(above) == identity for above in (file, *file.parents)):
                        shown = f"{name}" if str(path) == str(name) else f"{name} ({path})"
                        raise ConfigError(
                            f"--output {output} holds what --{flag.replace('_', '-')} {shown} reads: choose another "
                            "place"
                        )


def check_started_here(output: str | Path, was: str, reads: Mapping[str, str | None]) -> None:
    """Refuse to go on with a run elsewhere than in the folder that its paths are relative to.

    Args:
        output: The run directory.
        was: How it was called when the run was started, which says where that was.
        reads: Flag -> its path.

    Raises:
        RunError: A path that leads nowhere here leads to something there; the message names both.
    """
    there, parts = Path(output).absolute(), Path(was).parts
    if not parts or there.parts[-len(parts) :] != parts:
        return
    start = Path(*there.parts[: -len(parts)])
    for flag, value in reads.items():
        if value and data_path(value) is None and data_path(start / value):
            raise RunError(
                f"--resume: --{flag.replace('_', '-')} {value}: no such file here: the run was started in {start}, go "
                "on with it from there"
            )


def _files(path: Path) -> Iterator[Path]:
    """Where a path leads to, and everything in it where it is a folder, through links."""
    yield path.resolve()
    if path.is_dir():
        for folder, folders, names in os.walk(path):
            for name in (*folders, *names):
                file = Path(folder, name)
                if file.is_symlink():
                    yield file.resolve()


def _identity(path: Path) -> tuple[int, int] | None:
    """What is the same for all names of a file or folder, whatever links and mounts lead to it."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # not there, or no name of a file
        return None
    return status.st_dev, status.st_ino
