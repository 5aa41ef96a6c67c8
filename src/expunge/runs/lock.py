"""One owner of a run directory: a lock file with the host and the process that holds it.

RUN/.expunge/lock   {"host": ..., "process": ..., "since": ...}, held with flock as long as its process lives

On one machine the system drops the lock of a process that ends in whatever way. A lock of another machine stands until
it is removed there, or by hand.
"""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from expunge.errors import RunError
from expunge.runs import directory
from expunge.utils import files, folders
from expunge.utils.listing import OWN

FILE = "lock"
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What a file system without flock answers."""


class Lock:
    """The lock on a run directory, which is made where it is not there; `release` takes back what was made.

    Args:
        run: The directory.
        flag: Where its name comes from.

    Raises:
        RunError: Another process holds it, or the system refuses.
    """

    def __init__(self, run: Path, flag: str = "--output") -> None:
        take_back(run)
        directory.check_no_links(run)
        self.path = run / OWN / FILE
        with files.refusal(f"{flag} {run}: cannot make or lock", self.path):
            self._made = [folder for folder in self.path.parents if not folder.exists()]
            files.make_folders(self.path.parent)
            try:
                self._descriptor = self._acquire(run)
            except BaseException:
                self._remove_folders()
                raise

    def _acquire(self, run: Path) -> int:
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                locks = _flock(descriptor)
                holder = _holder(descriptor)
                alive = locks is False or (locks is None and _is_alive(holder))
                elsewhere = holder is not None and holder["host"] != socket.gethostname()
                if alive or elsewhere:
                    raise RunError(_in_use(run, self.path, holder, elsewhere))
                if not self.path.exists() or not os.path.samestat(os.fstat(descriptor), os.stat(self.path)):
                    os.close(descriptor)  # its holder has just removed it
                    continue
                note = {
                    "host": socket.gethostname(),
                    "process": os.getpid(),
                    "since": datetime.now(UTC).isoformat(timespec="seconds"),
                }
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(note).encode("ascii"), 0)
                os.fsync(descriptor)
                return descriptor
            except BaseException:
                os.close(descriptor)
                raise

    def release(self, place: Path | None = None) -> None:
        """Give the lock back; the folders that were made for it go where nothing else is in them.

        Args:
            place: The run directory, where it may have another name by now.
        """
        try:
            for path in (self.path, *([place / OWN / FILE] if place else [])):
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(self._descriptor), os.stat(path)):
                        path.unlink()
        finally:
            os.close(self._descriptor)
        self._remove_folders()

    def _remove_folders(self) -> None:
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:  # something stands in it by now
                return


def take_back(run: Path) -> None:
    """Give a run its name back that a process has lost which was killed between two renames of an exchange.

    Raises:
        RunError: That process is at work, or the system refuses.
    """
    aside = folders.aside_of(run)
    if os.path.isdir(aside) and not os.path.lexists(run):
        lock = Lock(aside)
        try:
            with files.refusal("cannot give its name back to", run):
                os.rename(aside, run)
        finally:
            lock.release(run)


@contextmanager
def hold(run: Path) -> Iterator[None]:
    """Hold the lock on a run within the context.

    Raises:
        RunError: As `Lock`.
    """
    lock = Lock(run, "--run")
    try:
        directory.recover(run)
        yield
    finally:
        lock.release()


def _flock(descriptor: int) -> bool | None:
    """Take the lock: whether it is free, or None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        raise


def _holder(descriptor: int) -> dict[str, Any] | None:
    """Who has written the lock file; None where nobody has, or was killed while writing it."""
    try:
        note = json.loads(os.pread(descriptor, 1000, 0))
        good = isinstance(note["host"], str) and isinstance(note["process"], int) and isinstance(note["since"], str)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return note if good else None


def _is_alive(holder: dict[str, Any] | None) -> bool:
    """Whether a process of this machine is there."""
    if holder is None:
        return False
    try:
        os.kill(holder["process"], 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _in_use(run: Path, path: Path, holder: dict[str, Any] | None, elsewhere: bool) -> str:
    if holder is None:
        return f"{run}: in use by another process: wait for it or give another folder"
    who = f"process {holder['process']} on {holder['host']} since {holder['since']}"
    rest = f"; if that one is gone, remove {path}" if elsewhere else ""
    return f"{run}: in use by {who}: wait for it or give another folder{rest}"
