"""What reaches the terminal."""

import errno
import os
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from expunge.errors import ConfigError, RunError
from expunge.utils import progress
from expunge.utils.progress import Reporter, Unread, reporter_for
from expunge.utils.ranks import launched
from expunge.utils.text import printable
from expunge.utils.trackers import Trackers


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Zoë's café → 3 ↑ 你好", "Zoë's café → 3 ↑ 你好"),
        ("two\nlines", "two\nlines"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("a\u202etxt.exe\u200b", "a\\u202etxt.exe\\u200b"),
        ("carriage\rreturn", "carriage\\rreturn"),
        ("\x9b31m", "\\x9b31m"),
        ("half \ud800", "half \\ud800"),
    ],
)
def test_what_steers_a_terminal_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_lines_of_a_reporter_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter()
    reporter.say("row \x1b]0;title\x07 [bold]not markup[/bold]")
    reporter.warn("row \x1b[31m")

    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert "[bold]not markup[/bold]" in error
    assert "warning: row \\x1b[31m" in error


def test_work_without_an_end_in_sight_moves_in_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for terminal, quiet in ((True, False), (True, True), (False, False)):
        monkeypatch.setattr("rich.console.Console.is_terminal", terminal)
        with Reporter(quiet=quiet).working("loading the model"):
            pass
        assert ("loading the model" in capsys.readouterr().err) == (terminal and not quiet)


def test_no_time_left_is_said_before_something_is_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("expunge.utils.progress.PLAIN_INTERVAL", 0.0)
    with Reporter().track("asking", 4, 1) as advance:
        for units in (0, 1, 2):
            advance(units)
    first, second, last = capsys.readouterr().err.splitlines()
    assert first == "asking 1/4"
    assert second.startswith("asking 2/4, 0 s left")
    assert last == "asking 4/4, 0 s"


def test_quiet_leaves_no_warning_out(capsys: pytest.CaptureFixture[str]) -> None:
    for reporter, told in ((Reporter(quiet=True), "warning: mind\n"), (Reporter(silent=True), "")):
        reporter.say("done")
        reporter.warn("mind")
        assert capsys.readouterr().err == told


@pytest.mark.parametrize("quiet", [False, True])
def test_without_a_terminal_what_takes_long_is_said_once(
    quiet: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = threading.Event()
    monkeypatch.setattr(progress, "SILENT", 0.0)
    own = Reporter(quiet=quiet)
    write = own._write
    monkeypatch.setattr(own, "_write", lambda line: (write(line), said.set()))
    for work in (own.working("loading\x1b"), own.track("steps", 3)):
        said.clear()
        with work:
            assert said.wait(0.2 if quiet else 60) != quiet
    assert capsys.readouterr().err == ("" if quiet else "loading\\x1b ...\nsteps ...\n")


def test_of_several_processes_the_first_alone_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, count, said in (("0", "2", "warning: hello"), ("1", "2", ""), ("16", "", "warning: hello")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", count)  # without one RANK is somebody else's
        reporter_for(True).warn("hello")
        assert capsys.readouterr().err.strip() == said
    monkeypatch.setenv("WORLD_SIZE", "auto")
    with pytest.raises(RunError, match="WORLD_SIZE=auto in the environment is no number"):
        launched()


def test_work_goes_on_where_nobody_can_read_it(tmp_path: Path) -> None:
    """A pipe or a terminal that is gone, and no stream at all; a disk that is full or broken is told."""
    assert Unread(None).write("hello") == 5
    for number, told in ((errno.EPIPE, False), (errno.EIO, True), (errno.ENOSPC, True)):
        with (tmp_path / "out").open("w") as stream:
            gone = OSError(number, "gone")
            out = Unread(SimpleNamespace(write=Mock(side_effect=gone), fileno=stream.fileno))
            with pytest.raises(OSError, match="gone") if told else nullcontext():
                assert out.write("hello") == 5
    ours, theirs = os.openpty()
    os.close(ours)  # the window is closed
    with os.fdopen(theirs, "w") as stream:
        out = Unread(stream)
        assert out.write("hello") == 5
        out.flush()


def test_a_tracker_that_cannot_begin_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = SimpleNamespace(run=None, init=Mock(side_effect=RuntimeError("api_key not configured (no-tty)")))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(ConfigError, match=r"--report-to wandb: cannot begin \(api_key not configured"):
        Trackers("wandb", "", {})


def test_a_tracked_run_of_the_callers_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = Mock()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=theirs, init=Mock(side_effect=AssertionError)))
    with Trackers("wandb", "", {}) as trackers:
        trackers.log({"loss": 1.0}, 3)
    theirs.log.assert_called_once_with({"loss": 1.0}, step=None)
    theirs.finish.assert_not_called()


def test_what_trackers_have_is_flushed_when_a_run_is_interrupted() -> None:
    class Writer:
        closed = False

        def close(self) -> None:
            self.closed = True

    trackers, writer = Trackers(None, "", {}), Writer()
    trackers._writer = writer
    with pytest.raises(KeyboardInterrupt), trackers:
        raise KeyboardInterrupt
    assert writer.closed
