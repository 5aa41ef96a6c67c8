"""What reaches the terminal."""

import errno
import importlib
import json
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from expunge.config import CalibrateConfig, EvaluateConfig, MergeConfig, UnlearnConfig
from expunge.errors import ConfigError, RunError
from expunge.evaluation.run import evaluate
from expunge.train.calibrate import calibrate
from expunge.train.loop import unlearn
from expunge.train.merge import merge
from expunge.utils import progress
from expunge.utils.progress import Reporter, Unread, reporter_for
from expunge.utils.ranks import launched
from expunge.utils.text import printable
from expunge.utils.trackers import Trackers
from tiny import save_tiny


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
    reporter = Reporter(quiet=quiet)
    write = reporter._write
    monkeypatch.setattr(reporter, "_write", lambda line: (write(line), said.set()))
    for work in (reporter.working("loading\x1b"), reporter.track("steps", 3)):
        said.clear()
        with work:
            assert said.wait(0.2 if quiet else 60) != quiet
    assert capsys.readouterr().err == ("" if quiet else "loading\\x1b ...\nsteps ...\n")


def test_without_a_terminal_what_takes_longer_is_said_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SILENT", 0.0)
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.5)
    reporter, lines, twice = Reporter(), [], threading.Event()
    monkeypatch.setattr(reporter, "_write", lambda line: (lines.append(line), len(lines) > 1 and twice.set()))
    with reporter.track("texts", 3):  # whose first part takes long
        assert twice.wait(60)
    assert lines[:2] == ["texts ...", "texts ... 1 s"]


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


class Watched(Reporter):
    """Knows whether something says, or would say, that work goes on."""

    def __init__(self) -> None:
        super().__init__(silent=True)
        self.at_work = 0

    @contextmanager
    def working(self, title: str) -> Iterator[None]:
        self.at_work += 1
        yield
        self.at_work -= 1

    @contextmanager
    def track(self, title: str, total: int, start: int = 0) -> Iterator[progress.Advance]:
        with self.working(title):
            yield lambda units=1, note="": None


def test_what_takes_long_of_a_large_model_or_file_is_never_done_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter, silent, seen = Watched(), list[str](), set[str]()
    slow = {
        "train.setup": ("load_model", "tokenize_all", "split_off", "misread"),
        "train.before_weights": ("read_sets",),
        "evaluation.run": ("load_model", "with_families"),
        "train.calibrate": ("load_base", "read_sets", "split_off", "run_rows"),
        "train.merge": ("load_base", "load_model", "read_sets", "run_rows"),
        "runs.manifest": ("model_fingerprint",),
        "runs.run": ("identity_of",),
        "evaluation.checks": ("known_base",),
    }

    def watched(place: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def done(*given: Any, **more: Any) -> Any:
            seen.add(place)
            if not reporter.at_work:
                silent.append(place)
            return work(*given, **more)

        return done

    for room, names in slow.items():
        module = importlib.import_module(f"expunge.{room}")
        for name in names:
            monkeypatch.setattr(module, name, watched(f"{room}.{name}", getattr(module, name)))
    chance = random.Random(0)
    for side in ("forget", "retain", "holdout"):
        words = [["".join(chance.choices("abdefgiklmnorstu", k=6)) for _ in range(8)] for _ in range(32)]
        rows = [{"prompt": " ".join(sentence[:3]), "completion": " ".join(sentence[3:])} for sentence in words]
        (tmp_path / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = str(save_tiny(tmp_path / "model", "llama"))
    other = str(save_tiny(tmp_path / "other", "llama", initializer_range=0.1))
    files = {side: str(tmp_path / f"{side}.jsonl") for side in ("forget", "retain", "holdout")}
    run, exact = str(tmp_path / "run"), {"dtype": "float32", "device": "cpu"}
    short = {"max_steps": 1, "lora_rank": 2, "rows_per_step": 4, "eval_every": 1}

    unlearn(UnlearnConfig(model=model, output=run, origin=other, **files, **short, **exact), reporter)
    evaluate(EvaluateConfig(run=run, reference=other, max_new_tokens=1, **exact), reporter)
    calibrate(CalibrateConfig(run=run, device="cpu"), reporter)
    merge(MergeConfig(run=run, output=str(tmp_path / "merged"), device="cpu"), reporter)

    assert not silent
    assert seen == {f"{room}.{name}" for room, names in slow.items() for name in names}
