"""Whole folders: published, replaced and exchanged at once."""

import ctypes
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from expunge.utils.files import make_folders, refusal, sync
from expunge.utils.interrupt import held
from expunge.utils.listing import note

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Names of Linux's fcntl.h and fs.h."""


@contextmanager
def temporary_folder(final: Path) -> Iterator[Path]:
    """A folder to write into, which gets its final name at the end of the context, or goes where that fails.

    Raises:
        RunError: As `replace_dir`.
    """
    with refusal("cannot write", final):
        make_folders(final.parent)
        temporary = Path(tempfile.mkdtemp(prefix=f".expunge-{final.name[:100]}-", dir=final.parent))
    try:
        yield temporary
        replace_dir(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def replace_dir(temporary: Path, final: Path) -> None:
    """Publish a finished folder under its `final` name beside it, whole or not at all; one that is there is replaced.

    Everything in it is made private (0600, 0700) and flushed to the disk first.

    Raises:
        RunError: The system refuses; `final` is then as it was.
    """
    with refusal("cannot write", final):
        for path in [*temporary.rglob("*"), temporary]:
            path.chmod(0o700 if path.is_dir() else 0o600)
            sync(path)
            if path.is_file():
                note(final / path.relative_to(temporary))
        if not final.is_dir():
            os.rename(temporary, final)
            sync(final.parent)
            return
        exchange(temporary, final)
        shutil.rmtree(temporary)


def exchange(one: Path, other: Path) -> None:
    """Give two folders of one parent each other's names: at once where the system can, else one after the other.

    Stop signals wait until it is done, and what fails on the way is undone.

    Raises:
        OSError: The system refuses; both are as they were.
    """
    with held():
        if not _exchange_at_once(one, other):
            aside = aside_of(other)
            os.rename(other, aside)
            try:
                os.rename(one, other)
            except OSError:
                os.rename(aside, other)
                raise
            os.rename(aside, one)
        sync(other.parent)


def aside_of(folder: Path) -> Path:
    """Where `exchange` keeps a folder for a moment on a system that cannot exchange two at once."""
    folder = Path(os.path.abspath(folder))
    return folder.with_name(f".{folder.name}.expunge-aside")


def _exchange_at_once(one: Path, other: Path) -> bool:
    """Linux's renameat2 with RENAME_EXCHANGE; False where system or file system have none."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(other))
