"""What a run directory is: how it is known, made anew and replaced."""

import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from expunge.errors import RunError
from expunge.utils import files

CONFIG_KEYS = {"run", "data", "loss"}
"""Keys that every `config.yaml` of a run has; by these and the manifest a run directory is known."""


def check_new(path: Path | str, *, overwrite: bool = False) -> None:
    """Look whether `new_run_dir` would succeed, without touching the disk.

    Args:
        path: The run directory to be.
        overwrite: A run that is there may be removed.

    Raises:
        RunError: Something other than an empty folder is there and it may not, or must not, be removed.
    """
    path = Path(path)
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RunError(f"--output {str(path)[:100]}: cannot be used ({reason}): give another --output") from None
    if not os.path.lexists(path):
        parent = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
        if not parent.is_dir():
            raise RunError(f"--output {path}: {parent} is a file, not a folder: give another --output")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise RunError(f"--output {path}: no permission to write in {parent}: give another --output")
        return
    if not path.is_dir():
        raise RunError(f"--output {path}: this is a file, not a folder: give another --output")
    if not os.access(path, os.W_OK | os.X_OK):
        raise RunError(f"--output {path}: no permission to write in {path}: give another --output")
    with files.refusal("cannot look into", path):
        empty = all(files.TEMPORARY.fullmatch(name.name) for name in path.iterdir())  # cut off at its very first file
    if empty:
        return
    if not overwrite:
        raise RunError(
            f"--output {path}: this folder is not empty: give another --output, --overwrite to replace the run "
            "in it, or --resume to go on with it"
        )
    if not _is_run(path):
        raise RunError(
            f"--output {path}: --overwrite removes only a run of Expunge, and this folder has neither its "
            "manifest.json nor its config.yaml: empty it yourself or give another --output"
        )
    if path.is_symlink() or Path.cwd().is_relative_to(path.resolve()):
        raise RunError(
            f"--output {path}: --overwrite does not remove a link or the folder you stand in: give another one"
        )


def new_run_dir(path: Path | str, *, overwrite: bool = False) -> Path:
    """Make an empty run directory with mode 0700.

    Args:
        path: The folder; an empty one that is there is used.
        overwrite: Remove a run that is there, with everything in its folder.

    Returns:
        The folder.

    Raises:
        RunError: As `check_new`, or the system refuses.
    """
    path = Path(path)
    check_new(path, overwrite=overwrite)
    with files.refusal("cannot make the run directory", path):
        if path.is_dir():
            files.sweep(path)
            if any(path.iterdir()):
                shutil.rmtree(files.move_aside(path))
        files.make_folders(path)
        path.chmod(0o700)
    return path


def _is_run(path: Path) -> bool:
    """Whether a folder holds a manifest.json or, cut off before that was written, a config.yaml of ours."""
    versions = _mapping(path / "manifest.json").get("versions")
    of_ours = isinstance(versions, dict) and "expunge" in versions
    return of_ours or _mapping(path / "config.yaml").keys() >= CONFIG_KEYS


def _mapping(path: Path) -> dict[str, Any]:
    """The mapping that a JSON or YAML file holds; empty when there is none."""
    try:
        content = yaml.safe_load(path.read_text("utf-8"))  # JSON is YAML
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
