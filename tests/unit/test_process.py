"""What a process does about signals and its memory; each in a child, which can be ended."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from ctypes import CDLL
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import expunge
from expunge.utils import interrupt
from expunge.utils.distributed import ALONE, Processes, SharedStop
from expunge.utils.hardening import no_core_dumps
from expunge.utils.interrupt import Interruptions, StopRequest


def in_child(work: Callable[[], object]) -> int:
    """Fork a child that does some work and ends with 0, with 130 where it is interrupted; gives its process.

    The child heeds signals when this returns.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.read(reader, 1)
        os.close(reader)
        os.close(writer)
        return child
    code = 1
    try:
        with Interruptions().heed():
            os.write(writer, b".")
            work()
        code = 0
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@dataclass(frozen=True)
class Two(Processes):
    """This process, and another one that says what a test wants: its flag and the milliseconds of its step."""

    count: int = 2
    said: tuple[int, int] = (0, 0)
    asked: list[torch.Tensor] = field(default_factory=list)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        self.asked.append(values)
        return values + torch.tensor(self.said)


@pytest.mark.parametrize(("milliseconds", "asked"), [(0, (1, 3)), (10**5, (20, 20))])
def test_processes_ask_each_other_whether_to_stop_as_often_as_their_steps_are_long(
    milliseconds: int, asked: tuple[int, int]
) -> None:
    two = Two(said=(0, milliseconds))
    shared = SharedStop(two)
    assert not any(shared.after_step(False, time.perf_counter(), waits=False) for _ in range(20))
    assert asked[0] <= len(two.asked) <= asked[1]
    before = len(two.asked)
    assert not shared.after_step(False, time.perf_counter(), waits=True)
    assert len(two.asked) == before + 1, "where the host waits anyway"


def test_a_process_stops_when_another_one_is_asked_to() -> None:
    assert SharedStop(Two(said=(1, 0))).after_step(False, time.perf_counter(), waits=True)
    assert SharedStop(Two()).after_step(True, time.perf_counter(), waits=True)
    assert SharedStop(ALONE).after_step(True, time.perf_counter(), waits=False), "alone, after every step"


def meet_nobody() -> None:
    """Wait in a library for a process that never comes, as at the rendezvous of several."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dist.TCPStore("127.0.0.1", port, 2, True, timedelta(seconds=60), True)


def wait_in_python() -> None:
    time.sleep(60)


def busy_in_a_library() -> None:
    """As a long operation: it holds on whatever signals come."""
    CDLL(None).usleep.restype = None
    end = time.monotonic() + 60
    while time.monotonic() < end:
        sum(range(10_000_000))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("work", [meet_nobody, wait_in_python, busy_in_a_library])
def test_a_stop_signal_ends_every_wait_within_two_seconds(work: Callable[[], object], number: signal.Signals) -> None:
    """On a machine that is busy with other things the best of a few tries counts."""
    for _ in range(3):
        child = in_child(work)
        time.sleep(0.2)  # until it waits
        begun = time.monotonic()
        os.kill(child, number)
        assert ended(child) == 130
        took = time.monotonic() - begun
        if took < 2.5:
            break
    assert took < 2.5


def test_a_step_that_is_running_is_not_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "LONGEST_WAIT", 0.2)

    def step() -> None:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            end = time.monotonic() + 0.6
            while time.monotonic() < end:
                sum(range(1_000_000))
            assert stop.requested

    assert ended(in_child(step)) == 0


def test_no_image_of_the_memory_is_left_by_a_crash() -> None:
    def look() -> None:
        no_core_dumps()
        assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0
        if sys.platform == "linux":
            assert CDLL(None).prctl(3, 0, 0, 0, 0) == 0  # PR_GET_DUMPABLE

    assert ended(in_child(look)) == 0


def test_modules_of_the_folder_that_a_command_starts_in_are_not_imported(tmp_path: Path) -> None:
    for name in ("yaml", "typing", "difflib", "json", "torch"):
        (tmp_path / f"{name}.py").write_text("import os; os._exit(99)")
    environment = {**os.environ, "PYTHONPATH": str(Path(expunge.__file__).parents[1])}
    words = [sys.executable, "-m", "expunge", "--help"]
    result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert (result.returncode, b"usage: expunge" in result.stdout) == (0, True), result.stderr
