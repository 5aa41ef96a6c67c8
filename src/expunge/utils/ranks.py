"""Which of several processes this one is, from what their launcher says, without loading what they talk with."""

import os


def is_writer() -> bool:
    """Whether this process writes and speaks: the first of those that share a run (their launcher sets `RANK`)."""
    return int(os.environ.get("RANK", "0")) == 0
