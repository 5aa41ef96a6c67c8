"""What a person sees while work goes on: lines on standard error, and a live bar where it is a terminal."""

import errno
import logging
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from expunge.utils.ranks import is_writer
from expunge.utils.text import printable

PLAIN_INTERVAL = 10.0
"""Seconds between progress lines where there is no terminal."""
SILENT = 2.0
"""Seconds without a word after which a line says what is being done, where there is no terminal."""

Advance = Callable[..., None]


class Unread:
    """A stream of text that goes on where nobody reads it any more (`| head`, a terminal that is closed, none from the
    start): the work is done to its end.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream or Path(os.devnull).open("w")  # noqa: SIM115

    def write(self, text: str) -> int:
        """Write, to nowhere once the reader has gone: EPIPE of a pipe, EIO of a terminal."""
        try:
            return int(self._stream.write(text))
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Flush, likewise."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if error.errno != errno.EPIPE and not (error.errno == errno.EIO and self._is_terminal()):
            raise error
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # what is left in the buffer goes there, too

    def _is_terminal(self) -> bool:
        """Also of one that is closed; a disk fails with the same error."""
        return stat.S_ISCHR(os.fstat(self._stream.fileno()).st_mode)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Reporter:
    """Says what happens; standard output is left to results.

    Args:
        quiet: Warnings alone.
        silent: Nothing at all, as of several processes all but the first.
    """

    def __init__(self, *, quiet: bool = False, silent: bool = False) -> None:
        silent = silent or not is_writer()
        self._quiet = quiet or silent
        self._spoken = 0.0
        """When progress was last told, where there is no terminal."""
        self._console = Console(stderr=True, quiet=silent, highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """Print one line, as text (nothing in it is markup)."""
        if not self._quiet:
            self._console.print(Text(printable(line)))

    def warn(self, line: str) -> None:
        """Print one line that the user should read."""
        self._console.print(Text(f"warning: {printable(line)}", style="yellow"))

    @contextmanager
    def working(self, title: str) -> Iterator[None]:
        """Something that moves while work goes on without a known end; without a terminal, a line if it takes long."""
        if self._quiet:
            yield
        else:
            with self._console.status(printable(title)) if self._console.is_terminal else self._late(title):
                yield

    @contextmanager
    def track(self, title: str, total: int, start: int = 0) -> Iterator[Advance]:
        """Progress over `total` units; yields `advance(units=1, note="")`."""
        if self._quiet:
            yield lambda units=1, note="": None
        elif self._console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}", markup=False),
            )
            with Progress(*columns, console=self._console) as progress:
                task = progress.add_task(title, total=total, completed=start, note="")
                yield lambda units=1, note="": progress.update(task, advance=units, note=note)
        else:
            with self._late(title):
                yield self._plain(title, total, start)

    @contextmanager
    def _late(self, title: str) -> Iterator[None]:
        """A line that says what is being done, unless it is done soon, and another where nothing is said for long."""
        begun, ended = time.monotonic(), threading.Event()

        def tell() -> None:
            if ended.wait(SILENT):
                return
            self._write(f"{printable(title)} ...")
            self._spoken = time.monotonic()
            while not ended.wait(max(1.0, self._spoken + PLAIN_INTERVAL - time.monotonic())):
                if (now := time.monotonic()) - self._spoken >= PLAIN_INTERVAL:
                    self._write(f"{printable(title)} ... {now - begun:.0f} s")
                    self._spoken = now

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _plain(self, title: str, total: int, start: int) -> Advance:
        begun = last = time.monotonic()
        done = start

        def advance(units: int = 1, note: str = "") -> None:
            nonlocal done, last
            done += units
            now = time.monotonic()
            if now - last < PLAIN_INTERVAL and done < total:
                return
            last = self._spoken = now
            left = f", {(now - begun) / (done - start) * (total - done):.0f} s left" if done > start else ""
            rest = left if done < total else f", {now - begun:.0f} s"
            self._write(f"{title} {done}/{total}{rest}{'  ' if note else ''}{note}")

        return advance

    def _write(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


class LogReporter(Reporter):
    """Says what happens to the logger `expunge`: progress at level INFO, warnings at WARNING."""

    def __init__(self) -> None:
        super().__init__()
        self._log = logging.getLogger("expunge")

    def say(self, line: str) -> None:
        """Log one line."""
        self._log.info("%s", printable(line))

    def warn(self, line: str) -> None:
        """Log one line that the user should read."""
        self._log.warning("%s", printable(line))

    def _write(self, line: str) -> None:
        self._log.info("%s", line)


def reporter_for(progress: bool | None) -> Reporter:
    """Where the progress of a call from Python goes; None shows it in a terminal or notebook, and logs it elsewhere."""
    if not is_writer():
        return Reporter(silent=True)
    console = Console(stderr=True)
    if progress is None and not (console.is_terminal or console.is_jupyter):
        return LogReporter()
    return Reporter(quiet=progress is False)
