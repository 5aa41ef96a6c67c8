"""What a run leaves on disk: every file whole or absent, readable by its owner alone.

Files are made 0600 in folders that are made 0700. A file is written under a temporary name in the folder where
it belongs, flushed to the disk and renamed, so a reader sees the old content or the new one and never a part.
Nothing is replaced unless the caller says so.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from expunge.errors import RunError

TEMPORARY = re.compile(r"\..+-[a-z0-9_]{8}")
"""Temporary names, as `tempfile` makes them of our prefixes."""


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
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync(path.parent)


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
    write_text(path, json.dumps(_finite(obj), indent=2, allow_nan=False) + "\n", overwrite=overwrite)


def append_line(path: Path | str, obj: Any) -> None:
    """Append one line of strict ASCII JSON, in one write; a missing file is made with mode 0600.

    Raises:
        RunError: The system refuses the write, or takes only a part of the line (a full disk).
        TypeError: `obj` holds something that JSON has no form for.
    """
    path = Path(path)
    line = (json.dumps(_finite(obj), allow_nan=False) + "\n").encode("ascii")
    with refusal("cannot append to", path):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            if os.write(descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)


def replace_dir(temporary: Path | str, final: Path | str) -> None:
    """Publish a finished folder under its final name, whole or not at all; a folder that is there is replaced.

    Everything in it is made private (0600, 0700) and flushed to the disk first.

    Args:
        temporary: The folder as written, beside `final`.
        final: Its name from now on.

    Raises:
        RunError: The system refuses; `final` is then as it was.
    """
    temporary, final = Path(temporary), Path(final)
    if temporary.absolute().parent != final.absolute().parent:
        raise ValueError(f"{temporary} must stand beside {final}: only then is the renaming atomic")
    with refusal("cannot write", final):
        for path in [*temporary.rglob("*"), temporary]:
            path.chmod(0o700 if path.is_dir() else 0o600)
            _sync(path)
        earlier = move_aside(final) if final.is_dir() else None
        try:
            os.rename(temporary, final)
        except OSError:
            if earlier:
                os.rename(earlier, final)
            raise
        _sync(final.parent)
        if earlier:
            shutil.rmtree(earlier)


def sweep(path: Path) -> None:
    """Remove what a process that was killed has left under temporary names in a folder of ours."""
    if path.is_dir():
        for left in path.iterdir():
            if TEMPORARY.fullmatch(left.name):
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def flush(path: Path) -> None:
    """Flush a file to the disk, if it is there."""
    if path.exists():
        with refusal("cannot write", path):
            _sync(path)


@contextmanager
def private_umask() -> Iterator[None]:
    """Whatever is created inside, by other libraries too, is readable by its owner alone."""
    earlier = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(earlier)


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


def adapter_fingerprint(folder: Path) -> str:
    """SHA-256 over an adapter's weights and strength: what its scores are of.

    Raises:
        RunError: A file of it cannot be read.
    """
    settings = folder / "adapter_config.json"
    with refusal("cannot read", settings):
        alpha = json.loads(settings.read_text("utf-8"))["lora_alpha"]
    weights = sorted(folder.glob("adapter_model*.safetensors"))
    return fingerprint(f"{float(alpha)!r}", *map(sha256_file, weights))


def move_aside(path: Path) -> Path:
    """Rename a folder to a free hidden name beside it."""
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
    os.rename(path, aside)  # onto an empty folder, which this replaces
    return aside


def make_folders(path: Path) -> None:
    """Make a folder and the missing ones above it with mode 0700 (`Path.mkdir` gives it to the last alone)."""
    if not path.is_dir():
        make_folders(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _finite(obj: Any) -> Any:
    """The same object with None for floats that are not finite, which JSON has no form for."""
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, dict):
        return {key: _finite(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_finite(value) for value in obj]
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
