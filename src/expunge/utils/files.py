"""What a run leaves on disk: every file whole or absent, readable by its owner alone.

Files are made 0600 in folders that are made 0700. A file is written under a temporary name in the folder where
it belongs, flushed to the disk and renamed, so a reader sees the old content or the new one and never a part.
Nothing is replaced unless the caller says so. A run keeps a list of what was written into it, so that only this is
ever removed with it.
"""

import errno
import hashlib
import json
import math
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from expunge.errors import RunError
from expunge.utils.interrupt import held
from expunge.utils.listing import TEMPORARY, is_inside, note

NO_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system answers that cannot flush a folder (network and shared disks)."""


_pending: ContextVar[list[tuple[Path, Path]] | None] = ContextVar("pending", default=None)
"""Temporary and final names of what the open transaction has written so far; None where none is open."""


def write_bytes(path: Path | str, data: bytes, *, overwrite: bool = False) -> None:
    """Write a file, whole or not at all, with mode 0600; missing parent folders are made with mode 0700.

    Args:
        path: The file.
        data: Its content.
        overwrite: Replace a file that is there.

    Raises:
        RunError: The file exists and `overwrite` is not set, or the system refuses the write.
    """
    path = Path(path)
    with refusal("cannot write", path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not overwrite and os.path.lexists(path):
            raise RunError(f"{path} exists already: give another name, or --overwrite to replace it")
        make_folders(path.parent)
        note(path)
        descriptor, temporary = tempfile.mkstemp(prefix=f".expunge-{path.name[:100]}-", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if (pending := _pending.get()) is not None:
                pending.append((Path(temporary), path))
                return
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync(path.parent)


def write_new(path: Path, data: bytes) -> None:
    """Write a file as `write_bytes` does, unless it is there by then: of several writers the first one's stays.

    Raises:
        RunError: The system refuses the write.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    write_bytes(temporary, data, overwrite=True)
    with refusal("cannot write", path):
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass  # that one stays
        except OSError:  # a file system without links
            with (
                suppress(FileExistsError),
                os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file,
            ):
                file.write(data)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


def write_text(path: Path | str, text: str, *, overwrite: bool = False) -> None:
    """Write a UTF-8 text file as `write_bytes` does; line ends are kept as they are.

    Raises:
        RunError: As `write_bytes`.
    """
    write_bytes(path, text.encode("utf-8"), overwrite=overwrite)


def write_json(path: Path | str, obj: Any, *, overwrite: bool = False) -> None:
    """Write strict ASCII JSON as `write_bytes` does: own order of keys, indent 2, null for NaN and infinity.

    Raises:
        RunError: As `write_bytes`.
        TypeError: `obj` holds something that JSON has no form for.
    """
    write_text(path, json.dumps(finite(obj), indent=2, allow_nan=False) + "\n", overwrite=overwrite)


def append_line(path: Path | str, obj: Any) -> None:
    """Append one line of strict ASCII JSON, in one write; a missing file is made with mode 0600.

    Raises:
        RunError: The system refuses the write, or takes only a part of the line (a full disk).
        TypeError: `obj` holds something that JSON has no form for.
    """
    path = Path(path)
    line = (json.dumps(finite(obj), allow_nan=False) + "\n").encode("ascii")
    with refusal("cannot append to", path):
        if not path.exists():
            note(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            if os.write(descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)


@contextmanager
def transaction(root: Path) -> Iterator[None]:
    """Several files, one commit point: what is written inside stands under temporary names until the context ends.

    Then a list of them is written into `root`, and each gets its name. A process that is killed before the list has
    changed nothing; one that is killed after it has done its work, for `settle` gives the names that are left.

    Args:
        root: A folder above all files.

    Raises:
        RunError: The system refuses; nothing is changed.
    """
    if _pending.get() is not None:
        yield  # a part of the transaction that is open
        return
    pending: list[tuple[Path, Path]] = []
    token = _pending.set(pending)
    try:
        yield
    except BaseException:
        for temporary, _ in pending:
            temporary.unlink(missing_ok=True)
        raise
    finally:
        _pending.reset(token)
    if not pending:
        return
    here = root.resolve()
    moves = [[str((path.parent.resolve() / path.name).relative_to(here)) for path in pair] for pair in pending]
    with held(), refusal("cannot write", root):
        journal = here / f".expunge-commit-{secrets.token_hex(4)}"
        try:
            write_bytes(journal, json.dumps(moves).encode("ascii"))
        except BaseException:
            for temporary, _ in pending:
                temporary.unlink(missing_ok=True)
            raise
        _finish(journal, moves)


def settle(root: Path) -> None:
    """Complete the transactions in a folder whose process was killed after their commit point.

    Raises:
        RunError: A list is damaged, or the system refuses.
    """
    for journal in sorted(root.glob(".expunge-commit-????????")):
        try:
            moves = json.loads(journal.read_bytes())
            good = all(len(pair) == 2 and all(map(is_inside, pair)) for pair in moves)
            good = good and all(TEMPORARY.fullmatch(Path(source).name) for source, _ in moves)
            here = root.resolve()  # no link within it leads out
            good = good and all((here / name).parent.resolve().is_relative_to(here) for pair in moves for name in pair)
        except FileNotFoundError:
            continue  # its own process was faster
        except (OSError, ValueError, TypeError, RecursionError):
            good = False
        if not good:
            raise RunError(f"{journal}: a damaged list of files that were being written: remove it")
        with refusal("cannot complete what was being written in", root):
            _finish(journal, moves)


def _finish(journal: Path, moves: list[list[str]]) -> None:
    for source, target in moves:
        with suppress(FileNotFoundError):  # it has its name already
            os.replace(journal.parent / source, journal.parent / target)
    for folder in {(journal.parent / target).parent for _, target in moves}:
        sync(folder)
    journal.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file to the disk, if it is there."""
    if path.exists():
        with refusal("cannot write", path):
            sync(path)


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's content, in hexadecimal digits.

    Raises:
        RunError: It cannot be read.
    """
    with refusal("cannot read", Path(path)), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*parts: bytes | str) -> str:
    """SHA-256 over parts, in hexadecimal digits; their order counts, and where one ends and the next begins."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def make_folders(path: Path) -> None:
    """Make a folder and the missing ones above it with mode 0700 (`Path.mkdir` gives it to the last alone)."""
    if not path.is_dir():
        make_folders(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in NO_SYNC):
            raise
    finally:
        os.close(descriptor)


def finite(obj: Any) -> Any:
    """The same object with None for floats that are not finite, which JSON has no form for."""
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, dict):
        return {key: finite(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [finite(value) for value in obj]
    return obj


@contextmanager
def refusal(what: str, path: Path) -> Iterator[None]:
    """Turn the system's refusal into one clear line."""
    try:
        yield
    except OSError as error:
        mend = "free some space" if error.errno == errno.ENOSPC else "look at the path and its permissions"
        raise RunError(f"{what} {path} ({error.strerror or error}): {mend}") from error


def check_replaceable(path: Path, marks: Sequence[str], what: str) -> None:
    """Refuse to put a file in the place of another kind of file, whatever `--overwrite` says.

    Args:
        path: The file to be written.
        marks: One of them stands in the first 2,000 characters of what may be replaced.
        what: What that is called.

    Raises:
        RunError: Something else is there.
    """
    if path.is_dir():
        raise RunError(f"--output {path}: is a folder: give the name of a file")
    if path.exists():
        with path.open("rb") as file:
            head = file.read(2000).decode(errors="replace")
        if not any(mark in head for mark in marks):
            raise RunError(f"--output {path}: --overwrite replaces only {what}, and this is none: give another name")
