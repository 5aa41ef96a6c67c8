"""What a run directory is: how it is known, made anew, and replaced when the new run is whole.

RUN/.expunge/files       what was written into the run; nothing else is ever removed
.RUN.expunge-new/        beside it: the run that is to replace it (`--overwrite`), until it is finished
"""

import os
import shutil
from pathlib import Path

from expunge.errors import RunError
from expunge.utils import files, folders, listing

REPLACES = "replaces"
"""In `listing.OWN`: says that a run is to replace another one once it is finished."""


def check_new(path: Path | str, *, overwrite: bool = False) -> None:
    """Look whether a run directory could be made, without touching the disk.

    Args:
        path: The run directory to be.
        overwrite: A run that is there may be replaced.

    Raises:
        RunError: Something other than an empty folder is there and it may not, or must not, be replaced.
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
        _check_none_staged(path, overwrite=overwrite)
        return
    if not path.is_dir():
        raise RunError(f"--output {path}: this is a file, not a folder: give another --output")
    if not os.access(path, os.W_OK | os.X_OK):
        raise RunError(f"--output {path}: no permission to write in {path}: give another --output")
    with files.refusal("cannot look into", path):
        if is_empty(path):
            _check_none_staged(path, overwrite=overwrite)
            return
    if not overwrite:
        raise RunError(
            f"--output {path}: this folder is not empty: give another --output, --overwrite to replace the run "
            "in it, or --resume to go on with it"
        )
    if not (path / listing.OWN / listing.LIST).is_file():
        raise RunError(
            f"--output {path}: --overwrite replaces only a run of Expunge, and this folder is none (it has no "
            "list of the files that a run has written): empty it yourself or give another --output"
        )
    if path.is_symlink() or Path.cwd().is_relative_to(path.resolve()):
        raise RunError(
            f"--output {path}: --overwrite does not remove a link or the folder you stand in: give another one"
        )
    strange = listing.unlisted(path)
    if strange:
        raise RunError(
            f"--output {path}: holds {strange[0]}, which no run has written, and --overwrite would remove it: move it "
            "elsewhere or give another --output"
        )


def _check_none_staged(path: Path, *, overwrite: bool) -> None:
    """Refuse to begin where `--resume` would go on with another run, one that was to replace what stood here.

    Raises:
        RunError: So.
    """
    if is_staged(path) and not overwrite:
        raise RunError(
            f"--output {path}: beside it, in {staged(path)}, is an unfinished run that was to replace one here: give "
            "another --output, or --overwrite to begin without it"
        )


def check_no_links(path: Path) -> None:
    """Refuse a run of which a folder that commands write into is a link: what is written into a run stays in it.

    Raises:
        RunError: So.
    """
    for name in (listing.OWN, "adapter", "checkpoints"):
        if (path / name).is_symlink():
            raise RunError(
                f"{path / name}: is a link, and commands on a run write into it: put the folder itself there"
            )


def is_empty(path: Path) -> bool:
    """Whether nothing is in a folder but what a process has left that was killed before its first file."""
    names = {entry.name for entry in path.iterdir()}
    begun = (path / listing.OWN / listing.LIST).exists() and "manifest.json" in names
    return not begun and all(name == listing.OWN or listing.TEMPORARY.fullmatch(name) for name in names)


def make(path: Path, *, replaces: bool = False) -> None:
    """Make an empty run directory with mode 0700 and an empty list of files.

    Args:
        path: The folder; an empty one that is there is used.
        replaces: It is a `staged` one, which is to replace another run. An earlier staged one goes either way.

    Raises:
        RunError: The system refuses.
    """
    with files.refusal("cannot make the run directory", path):
        discard(path if replaces else staged(path))
        files.make_folders(path / listing.OWN)
        listing.sweep(path)
        path.chmod(0o700)
        (path / listing.OWN).chmod(0o700)
        for name in (listing.LIST, *([REPLACES] if replaces else [])):
            (path / listing.OWN / name).touch(mode=0o600)


def staged(path: Path) -> Path:
    """Where the run is written that is to replace the one in `path`."""
    path = Path(os.path.abspath(path))
    return path.with_name(f".{path.name}.expunge-new")


def is_staged(path: Path) -> bool:
    """Whether `staged(path)` is a run that is to replace the one in `path`, and not what was left of an earlier one."""
    return (staged(path) / listing.OWN / REPLACES).exists()


def replace(path: Path) -> None:
    """Put the finished run from `staged(path)` into the place of the one in `path`, which goes.

    What somebody has put into the old one meanwhile is kept, in the new one.

    Raises:
        RunError: The system refuses; the old one is then as it was.
    """
    new = staged(path)
    with files.refusal("cannot put the new run in the place of", path):
        folders.exchange(new, path)
        (path / listing.OWN / REPLACES).unlink(missing_ok=True)
        for name in listing.unlisted(new):
            source, target = new / name, path / name
            if not source.is_dir() and not os.path.lexists(target):
                files.make_folders(target.parent)
                os.rename(source, target)
        discard(new)


def recover(path: Path) -> None:
    """Remove what a killed process has left: an old run that was replaced, temporary names.

    Raises:
        RunError: The system refuses.
    """
    with files.refusal("cannot look after", path):
        aside, left = folders.aside_of(path), staged(path)
        if aside.is_dir() and (path / listing.OWN / REPLACES).exists() and not os.path.lexists(left):
            os.rename(aside, left)  # the last step of an exchange
        if path.is_dir() and (left / listing.OWN).is_dir() and not is_staged(path):
            discard(left)
        (path / listing.OWN / REPLACES).unlink(missing_ok=True)
        if path.is_dir():
            files.settle(path)
            listing.sweep(path)
            listing.sweep(path / "adapter")


def discard(path: Path) -> None:
    """Remove a run with what its list names; the folder stays where it holds anything else.

    Raises:
        OSError: The system refuses.
    """
    if not path.is_dir():
        return
    listing.remove_listed(path)
    listing.sweep(path)
    shutil.rmtree(path / listing.OWN, ignore_errors=True)
    if not any(path.iterdir()):
        path.rmdir()
