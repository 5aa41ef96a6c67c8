"""What happens when someone wants the process to stop: a signal from the keyboard, the system or a scheduler."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from expunge.utils.ranks import is_writer

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
LONGEST_WAIT = 1.5
"""Seconds after which a process ends that waits in a library and does not come to its handler."""

_handled = float("-inf")
"""When a handler ran last."""
_patient = 0
"""How many contexts are open that end a step before they stop."""


class StopRequest:
    """Within the context, the first stop signal is noted in `requested`; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._earlier: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        global _patient
        _patient += 1
        self._earlier = _install(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        global _patient
        _patient -= 1
        _restore(self._earlier)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


class Interruptions:
    """Within `heed`, every stop signal raises KeyboardInterrupt where the process stands, and `seen` is set.

    A library that is being imported may turn the KeyboardInterrupt into an error of its own; `seen` tells.
    """

    def __init__(self) -> None:
        self.seen = False

    @contextmanager
    def heed(self) -> Iterator[None]:
        """Handle the signals within the context.

        A call of a library that waits (for other processes, for a disk) keeps Python's handlers from running; after
        `LONGEST_WAIT` the process ends all the same. Nothing is half-written then, as after a SIGKILL.
        """
        earlier = _install(self._interrupt)
        try:
            with _end_of_waits():
                yield
        finally:
            _restore(earlier)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        raise KeyboardInterrupt


@contextmanager
def held() -> Iterator[None]:
    """Within the context stop signals wait; the first of them is raised again at its end."""
    seen: list[int] = []
    earlier = _install(lambda number, frame: seen.append(number))
    try:
        yield
    finally:
        _restore(earlier)
        for number in seen[:1]:
            signal.raise_signal(number)


def _install(handler: Callable[[int, FrameType | None], None]) -> dict[int, object]:
    """Set a handler for the stop signals that the process does not ignore (as under nohup); gives those before."""
    earlier: dict[int, object] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        global _handled
        _handled = time.monotonic()
        handler(number, frame)

    for number in STOP_SIGNALS:
        if signal.getsignal(number) == signal.SIG_IGN:
            continue
        try:
            earlier[number] = signal.signal(number, handle)
        except ValueError:  # signals can be handled in the main thread only; elsewhere its owner handles them
            break
    return earlier


@contextmanager
def _end_of_waits() -> Iterator[None]:
    """Within the context another thread looks whether stop signals come to their handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(reader,), daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)
        watch.join()
        os.close(reader)


def _watch(reader: int) -> None:
    while number := os.read(reader, 1):
        if number[0] not in STOP_SIGNALS:
            continue
        seen = time.monotonic()
        while time.monotonic() < seen + LONGEST_WAIT and _handled < seen - LONGEST_WAIT and not _patient:
            time.sleep(0.02)
        if _handled < seen - LONGEST_WAIT and not _patient:
            if is_writer():
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"expunge: interrupted\n")
            os._exit(130)


def _restore(handlers: dict[int, object]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)  # type: ignore[arg-type]
