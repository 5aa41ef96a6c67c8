"""A deadline for code that somebody else has written, such as a chat template."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class DeadlineError(Exception):
    """The time is over."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """End Python code that runs longer within the context, in whatever thread it is.

    Raises:
        DeadlineError: The time is over; raised between two steps of the code, so a single call of a library is not cut
            short.
    """
    target = ctypes.c_ulong(threading.get_ident())
    over = threading.Event()

    def end() -> None:
        if not over.is_set():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(target, ctypes.py_object(DeadlineError))

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        over.set()
        timer.cancel()
