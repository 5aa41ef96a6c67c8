"""Which of several processes this one is, from what their launcher says, without loading what they talk with."""

import os

from expunge.errors import RunError


def launched() -> bool:
    """Whether a launcher has started several processes for one run: `WORLD_SIZE` and `RANK`, without which the other
    is somebody else's (a cluster's number of a node, a script's rank of an adapter).
    """
    return from_launcher("WORLD_SIZE", 1) > 1 and bool(os.environ.get("RANK"))


def is_writer() -> bool:
    """Whether this process writes and speaks: the first of those that share a run."""
    return not launched() or from_launcher("RANK", 0) == 0


def from_launcher(name: str, without: int) -> int:
    """A number that launchers set, or the one without.

    Raises:
        RunError: It is set to something else.
    """
    given = os.environ.get(name) or str(without)
    if not given.isdecimal():
        raise RunError(
            f"{name}={given} in the environment is no number: a launcher of several processes sets it, or none"
        )
    return int(given)
