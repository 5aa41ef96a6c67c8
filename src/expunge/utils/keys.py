"""Hashes of data under a key of the user: equal data have equal hashes, and nobody without the key learns anything.

A plain hash of a text that is known but for a telephone number gives the number away to whoever tries them all. The
key is in `~/.local/state/expunge/key` (or under `XDG_STATE_HOME`), outside of every run, so no run that is passed on
carries it. All runs of one user share it: their data can be compared.
"""

import hashlib
import hmac
import os
import secrets
from functools import cache
from pathlib import Path
from typing import Any

from expunge.errors import RunError
from expunge.utils import files
from expunge.utils.ranks import launched

BYTES = 32
MEND = "hashes of data need a key: set XDG_STATE_HOME to a folder of yours"


def keyed(*parts: bytes | str) -> str:
    """Keyed hash over parts, as `KEY:DIGEST` where KEY says which key it is of; order and ends of parts count.

    Raises:
        RunError: The key cannot be read or made.
    """
    key = _key()
    digest = hmac.new(key, files.fingerprint(*parts).encode("ascii"), hashlib.sha256).hexdigest()
    return f"{_name(key)}:{digest}"


def of_this_key(digest: str) -> bool:
    """Whether a hash that `keyed` gave is of the key that is here, so that it can be compared.

    Raises:
        RunError: The key cannot be read or made.
    """
    return digest.partition(":")[0] == _name(_key())


def key_file() -> Path:
    """Where the key is."""
    try:
        home = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    except RuntimeError:  # a user without HOME whom the system does not know, as in containers
        raise RunError(f"no home folder: {MEND}") from None
    return Path(home) / "expunge" / "key"


def _name(key: bytes) -> str:
    """What stands for a key; it gives nothing of it away."""
    return hashlib.sha256(b"name of a key" + key).hexdigest()[:8]


def _key() -> bytes:
    """The key; of several processes that share a run, that of the first."""
    if not launched():
        return _read(key_file())
    from expunge.utils.distributed import current  # it needs torch, which who reads results need not wait for

    processes = current()
    return _shared(processes, _read(key_file()) if processes.index == 0 else b"")


@cache
def _shared(processes: Any, key: bytes) -> bytes:
    found: bytes = processes.gather(key)[0]
    return found


@cache
def _read(path: Path) -> bytes:
    if not path.exists():
        try:
            files.write_new(path, secrets.token_bytes(BYTES))
        except RunError as error:
            if not path.exists():  # another process may have been faster
                raise RunError(f"{error}; {MEND}") from None
    with files.refusal("cannot read", path):
        key = path.read_bytes()
    if len(key) != BYTES:
        raise RunError(f"{path}: is no key of {BYTES} bytes: remove it, and a new one is made")
    return key
