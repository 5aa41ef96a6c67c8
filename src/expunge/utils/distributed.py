"""Several processes that share one run: their places, their sums, and how one that fails takes the others along.

A launcher (`accelerate launch`, `torchrun`) starts the processes and sets RANK, WORLD_SIZE, LOCAL_RANK and the address
where they meet. Each of them computes its part of the work; the first one alone writes and speaks.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import DeviceMesh, init_device_mesh

from expunge.errors import RunError, UserError
from expunge.utils.ranks import from_launcher, launched

Item = TypeVar("Item")
Result = TypeVar("Result")
STOP_SECONDS = 1.0
"""Time that several processes go on after one of them was asked to stop, about: until they ask each other."""
POLL_SECONDS = 0.5
"""How often a process looks whether another one has failed."""
WAIT = timedelta(hours=1)
"""Longest wait for the others, one of which may be loading a large model; a failure is seen long before."""
GRACE_SECONDS = 30.0
"""Time for an interrupted run to save what it has, and for all processes to come to the end."""
SAME_SECONDS = 2.0
"""Time for a process to fail of what another one has failed of, which is then said once."""


@dataclass(frozen=True)
class Processes:
    """The place of this process among those that share the work.

    Attributes:
        index: Number of this process.
        count: Processes of the run.
        local_index: Number of this process on its machine.
        local_count: Processes on its machine.
    """

    index: int = 0
    count: int = 1
    local_index: int = 0
    local_count: int = 1

    def is_own(self, number: int) -> bool:
        """Whether this process does piece `number` of the work."""
        return number % self.count == self.index

    def total(self, values: Tensor) -> Tensor:
        """Sum over the processes; where each has filled its own part of zeros, that puts the parts together exactly."""
        if self.count == 1:
            return values
        device = _device()
        summed = values.to(device)
        dist.all_reduce(summed)
        return summed.to(values.device)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        return self.total(torch.tensor([int(flag)])).item() > 0

    def agree(self, number: int, what: str) -> None:
        """Check that all processes have the same number.

        Raises:
            RunError: They differ.
        """
        found = self.gather(number)
        if len(set(found)) > 1:
            raise RunError(
                f"the processes see different {what} ({', '.join(map(str, found))}): --output and the data must be on "
                "a file system that all machines share"
            )

    def gather(self, item: Item) -> list[Item]:
        """What every process gives, in the order of the processes."""
        if self.count == 1:
            return [item]
        everyone = [item] * self.count
        dist.all_gather_object(everyone, item)
        return everyone

    def share(self, items: Sequence[Item], work: Callable[[list[Item]], list[Result]]) -> list[Result]:
        """`work(items)`, a result for each item: each process does its part once, and all of them get all results."""
        if self.count == 1:
            return work(list(items))
        done = work(list(items[self.index :: self.count]))
        everyone = self.gather(done)
        return [everyone[at % self.count][at // self.count] for at in range(len(items))]

    def once(self, items: Sequence[Item], work: Callable[[list[Item]], list[Result]]) -> list[Result]:
        """`work(items)` of the first process, for work that cannot be divided; the others do it on no items."""
        return self.gather(work(list(items) if self.index == 0 else []))[0]

    def in_turn(self, work: Callable[[], Result]) -> Result:
        """What `work` gives, done by one process of a machine after the other: for what takes much of its memory."""
        for turn in range(max(self.gather(self.local_count))):
            if turn == self.local_index:
                result = work()
            self.gather(turn)  # the others wait
        return result

    def mesh(self, device: torch.device) -> DeviceMesh:
        """All processes, as those that share the weights of a model do."""
        return init_device_mesh(device.type, (self.count,), mesh_dim_names=("fsdp",))  # the name that PEFT looks for


ALONE = Processes()


class SharedStop:
    """Whether a process of the run has been asked to stop, which all of them hear after the same step.

    Several processes ask each other, and a GPU runs empty each time. So they ask after the steps where the host waits
    anyway, and as often as it takes to stop within about `STOP_SECONDS`: by the time of their steps, which they tell
    each other, so that they ask after the same ones.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._every, self._steps = 1, 0
        """Steps from one question to the next, and those since the last one."""
        self._spent, self._milliseconds = 0.0, round(1000 * STOP_SECONDS)
        """Seconds of these steps, and the time of a step before them."""

    def after_step(self, requested: bool, begun: float, *, waits: bool) -> bool:
        """Whether to stop after a step.

        Args:
            requested: This process has been asked to.
            begun: When the step began, by `time.perf_counter`.
            waits: The host waits after this step, in every process.
        """
        if self._processes.count == 1:
            return requested
        self._steps += 1
        asks, stops = waits or self._steps >= self._every, False
        if asks:
            flags, milliseconds = self._processes.total(torch.tensor([int(requested), self._milliseconds])).tolist()
            stops = flags > 0
            self._every = max(1, round(1000 * STOP_SECONDS) * self._processes.count // max(1, milliseconds))
        self._spent += time.perf_counter() - begun
        if asks:
            self._milliseconds = round(1000 * self._spent / self._steps)
            self._steps, self._spent = 0, 0.0
        return stops


def current() -> Processes:
    """The processes of the run that is on."""
    if not dist.is_initialized():
        return ALONE
    rank, count = dist.get_rank(), dist.get_world_size()
    local_count = from_launcher("LOCAL_WORLD_SIZE", count)
    return Processes(rank, count, from_launcher("LOCAL_RANK", rank), local_count)


@contextmanager
def together(pick_device: Callable[[], torch.device]) -> Iterator[Processes]:
    """Meet the other processes of the run; within the context, an error of one of them ends all.

    Args:
        pick_device: Gives the device of this process; where one has none, all of them end.

    Raises:
        RunError: The launcher did not say where to meet, or another process is gone.
    """
    if not launched() or dist.is_initialized():
        pick_device()
        yield current()
        return
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        raise RunError(
            f"WORLD_SIZE and RANK are set, as for several processes, and {' and '.join(missing)} not, where they meet: "
            "start them with torchrun or accelerate launch, or unset WORLD_SIZE"
        )
    store, rank, count = next(iter(dist.rendezvous("env://")))
    watch = _Watch(rank, count)  # first of all: one that fails before it has joined is waited for
    try:
        device = pick_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=WAIT)
        # A device was picked by LOCAL_RANK; without it, of each machine's one process on the first.
        if not {"LOCAL_RANK", "LOCAL_WORLD_SIZE"} <= os.environ.keys():
            names = current().gather(socket.gethostname())
            os.environ.setdefault("LOCAL_WORLD_SIZE", str(names.count(names[rank])))
            os.environ.setdefault("LOCAL_RANK", str(names[:rank].count(names[rank])))
        yield current()
    except BaseException as error:
        watch.stop()
        watch.fail(error)
    else:
        watch.stop()
        watch.leave(GRACE_SECONDS)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


class _Watch:
    """Looks, beside the work, whether another process has failed; a process may wait for such a one for ever."""

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count
        # A connection of its own: the group's may be busy with waiting.
        self.store = dist.PrefixStore(
            f"expunge-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}",
            dist.TCPStore(
                os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), None, False, timedelta(seconds=60), False
            ),
        )
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()

    def fail(self, error: BaseException) -> None:
        """Tell the others why this process ends, unless one of them was first.

        Raises:
            BaseException: `error`, or a RunError with the message of the process that failed first.
        """
        lost = isinstance(error, RuntimeError) and any(
            word in str(error) for word in ("Connection", "connection", "gloo", "NCCL", "Socket", "socket")
        )
        told = isinstance(error, UserError | KeyboardInterrupt)
        text = str(error) if told else f"{type(error).__name__} (a bug in Expunge)"
        note = {"process": self.rank, "interrupted": isinstance(error, KeyboardInterrupt), "message": text}
        first = self._first_failure(2.0 if lost else 0.0)
        if first is None and lost:
            raise RunError(
                "another process of this run is gone, perhaps killed for its memory: look at the system's log; "
                "--resume goes on from the last checkpoint"
            ) from error
        if first is None and self._add("failures") == 1:
            with suppress(RuntimeError):  # the store is gone, and nobody is left to tell
                self.store.set("failure", json.dumps(note))
            self.leave()
            raise error
        first = first or self._first_failure(2.0)
        self.leave()
        if first is None or isinstance(error, KeyboardInterrupt):
            raise error
        if first["message"] == note["message"]:
            raise SystemExit(2) from None  # the first has said it
        raise RunError(_told(first)) from error

    def leave(self, seconds: float = 10 * POLL_SECONDS) -> None:
        """The last word with the others; the first process may hold the store, so it lets them go before."""
        gone = self._add("gone")
        deadline = time.monotonic() + seconds
        while self.rank == 0 and gone < self.count and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 10)
            gone = self._add("gone", 0)

    def _look(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            first = self._first_failure(0.0)
            if first is None:
                continue
            if self._ended.wait(GRACE_SECONDS if first["interrupted"] else SAME_SECONDS):
                return
            self.leave()
            if not first["interrupted"]:
                sys.stderr.write(f"expunge: error: {_told(first)}\n")
                sys.stderr.flush()
            os._exit(130 if first["interrupted"] else 2)  # the work may wait for the other one without end

    def _first_failure(self, seconds: float) -> dict[str, Any] | None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if self.store.check(["failure"]):
                    note: dict[str, Any] = json.loads(self.store.get("failure"))
                    return note
            except (RuntimeError, ValueError):
                return None  # the store is gone, and with it what it could tell
            if time.monotonic() >= deadline:
                return None
            time.sleep(POLL_SECONDS / 10)

    def _add(self, key: str, amount: int = 1) -> int:
        try:
            return self.store.add(key, amount)
        except RuntimeError:  # as above
            return self.count + 1


def _told(note: dict[str, Any]) -> str:
    return f"process {note['process']} failed: {' '.join(note['message'].split())}"


def _device() -> torch.device:
    """Where sums over the processes are taken."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
