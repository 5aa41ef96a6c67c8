"""What happens when someone wants the process to stop: a signal from the keyboard, the system or a scheduler."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class StopRequest:
    """Within the context, the first stop signal is noted in `requested`; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._earlier: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        self._earlier = _install(self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        """Handle the signals within the context."""
        earlier = _install(self._interrupt)
        try:
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
    for number in STOP_SIGNALS:
        if signal.getsignal(number) == signal.SIG_IGN:
            continue
        try:
            earlier[number] = signal.signal(number, handler)
        except ValueError:  # signals can be handled in the main thread only; elsewhere its owner handles them
            break
    return earlier


def _restore(handlers: dict[int, object]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)  # type: ignore[arg-type]
