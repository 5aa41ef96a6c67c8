"""What a process does so that it leaves none of its memory, and shows none of it in a traceback."""

import ctypes
import resource
import sys
import traceback

from expunge.errors import UserError

PR_SET_DUMPABLE = 4  # a name of Linux's prctl.h


def no_core_dumps() -> None:
    """Leave no image of the memory behind if the process crashes: it holds texts that are to be forgotten.

    A limit of 0 is for the kernel's own core files; programs that the kernel pipes them to ask for the other.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def outline(error: BaseException) -> str:
    """A traceback without what it may quote: files, lines and functions, the types of errors, our own messages.

    Messages of other libraries stay out, since they quote cells, keys and names; so do values of variables.
    """
    parts = []
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    for link in reversed(chain):
        parts.append("Traceback (most recent call last):\n")
        for frame in traceback.extract_tb(link.__traceback__):
            parts.append(f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}\n')
        message = f": {' '.join(str(link).split())}" if isinstance(link, UserError) else " (its message may quote data)"
        parts.append(f"{type(link).__name__}{message}\n\n")
    return "".join(parts)
