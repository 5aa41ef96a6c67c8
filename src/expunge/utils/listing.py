"""The list that a run directory keeps of its files, so that only what a run has written is ever removed with it."""

import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path, PurePosixPath

OWN = ".expunge"
"""Hidden folder in a run directory, all of it ours: the list of its files, its lock."""
LIST = "files"
"""In `OWN`: the files that were written into the run, a JSON string a line, relative to the run."""
TEMPORARY = re.compile(r"\.expunge-.*-[a-z0-9_]{8}")
"""Temporary names."""


def note(path: Path) -> None:
    """Put a file into the list of the run directory that it is written into, if it is one, before it is there.

    Raises:
        OSError: The list cannot be written.
    """
    path = path.parent.resolve() / path.name  # `..` may lead out of the run
    for run in path.parents:
        if (run / OWN / LIST).is_file():
            if not path.is_relative_to(run / OWN):
                descriptor = os.open(run / OWN / LIST, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
                try:
                    os.write(descriptor, json.dumps(str(path.relative_to(run))).encode("ascii") + b"\n")
                finally:
                    os.close(descriptor)
            return


def note_folder(run: Path, name: str) -> None:
    """Put a whole folder of a run into its list, for what other libraries write there."""
    with open(run / OWN / LIST, "a", encoding="ascii") as file:
        file.write(json.dumps(f"{name}/") + "\n")


def listed(run: Path) -> set[str]:
    """What a run's own list names, still there or not: files, and whole folders that end in a slash."""
    try:
        lines = (run / OWN / LIST).read_bytes().split(b"\n")
    except OSError:
        return set()
    found = set()
    for line in lines:
        with suppress(ValueError, RecursionError):  # a line that was cut off: its file was never made
            name = json.loads(line)
            if isinstance(name, str) and is_inside(name):
                found.add(str(PurePosixPath(name)) + ("/" if name.endswith("/") else ""))
    return found


def unlisted(run: Path) -> list[str]:
    """What stands in a run directory and was not written by a run: relative names, folders without files too."""
    names = listed(run)
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    whole = tuple(name for name in names if name.endswith("/"))
    found = []
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if name.split("/")[0] == OWN or any(map(TEMPORARY.fullmatch, name.split("/"))) or f"{name}/".startswith(whole):
            continue
        known = name in folders if path.is_dir() and not path.is_symlink() else name in names
        if not known:
            found.append(name)
    return found


def files_below(folder: Path) -> list[str]:
    """The files and links in a folder and all folders in it: relative names."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    return [path.relative_to(folder).as_posix() for path in found]


def remove_listed(run: Path, below: str = "") -> None:
    """Remove what a run's own list names, and folders that are empty then; whatever else is there stays.

    Args:
        run: The run directory.
        below: A folder in it whose files alone are removed.

    Raises:
        OSError: The system refuses.
    """
    top = PurePosixPath(below)
    folders = {run / top} if below else set()
    for entry in listed(run):
        name = PurePosixPath(entry)
        if below and not name.is_relative_to(top):
            continue
        parents = [run / parent for parent in name.parents][:-1]
        if any(parent.is_symlink() for parent in parents):
            continue  # the way leads elsewhere
        if entry.endswith("/") and (run / name).is_dir() and not (run / name).is_symlink():
            shutil.rmtree(run / name)
        with suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
            (run / name).unlink()
        folders |= {parent for parent in parents if not below or parent.is_relative_to(run / top)}
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        sweep(folder)
        with suppress(OSError):  # not empty, or not there
            folder.rmdir()


def sweep(path: Path) -> None:
    """Remove what a process that was killed has left under temporary names in a folder of ours."""
    if path.is_dir():
        for left in path.iterdir():
            if TEMPORARY.fullmatch(left.name) and not left.name.startswith(".expunge-commit-"):
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def is_inside(name: str) -> bool:
    """Whether a relative name stays in its folder, and is one that a file can have."""
    path = PurePosixPath(name)
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # half of a pair of surrogates
        return False
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name
