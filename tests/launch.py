"""Several processes of one run, as a launcher starts them, forked from a server that has loaded the libraries once.

with Launch(folder) as launch:
    ends = launch(3, "unlearn", "--model", ..., prepare="two_machines")
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

TIMEOUT = 300.0
"""Seconds after which a process counts as hanging, on a machine that is busy with other things too."""
COMMAND = (
    "unlearn", "--model", "model", "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--holdout", "holdout.jsonl",
    "--rows-per-step", "5", "--max-steps", "7", "--save-every", "2", "--lora-rank", "4", "--dtype", "float32",
    "--device", "cpu", "--prompt-format", "space", "--end-of-text", "yes", "--learning-rate", "0.01",
)  # fmt: skip
MARKER = "Zarquon"


@dataclass(frozen=True)
class End:
    """How a process ended."""

    code: int
    out: str
    err: str


def launch(count: int, folder: Path, *arguments: str, prepare: str = "nothing") -> list[End]:
    """Run the command line in `count` processes that share the work.

    Args:
        count: Processes.
        folder: Where they stand.
        arguments: The command.
        prepare: Function of this module that every process calls before.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["expunge.train.loop", "expunge.train.dry_run", "expunge.evaluation.run"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    logs = [(folder / f".out-{rank}", folder / f".err-{rank}") for rank in range(count)]
    workers: list[Any] = []
    for rank in range(count):
        environment = {"OMP_NUM_THREADS": "1"}
        if count > 1:
            environment |= {
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "RANK": str(rank),
                "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count),
            }  # fmt: skip
        given = (environment, str(folder), arguments, [str(path) for path in logs[rank]], prepare)
        workers.append(context.Process(target=_work, args=given))
        workers[-1].start()
    try:
        for worker in workers:
            worker.join(TIMEOUT)
    finally:
        late = [worker for worker in workers if worker.is_alive()]
        for worker in late:
            worker.kill()
            worker.join()
    ends = [
        End(worker.exitcode, out.read_text(), err.read_text()) for worker, (out, err) in zip(workers, logs, strict=True)
    ]
    for out, err in logs:
        out.unlink()
        err.unlink()
    assert not late, ends
    return ends


def largest_differences(first: Path, second: Path) -> tuple[float, float]:
    """Of the losses of a step (relative), and of the adapters' weights (absolute)."""
    logs = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (first, second)]
    losses = max(
        abs(one[name] - other[name]) / max(1e-3, abs(one[name]))
        for one, other in zip(*logs, strict=True)
        for name in ("loss", "forget", "retain", "kl", "grad_norm")
    )
    weights = [load_file(run / "adapter/adapter_model.safetensors") for run in (first, second)]
    return losses, max((weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0])


def _work(environment: dict[str, str], folder: str, arguments: tuple[str, ...], logs: list[str], prepare: str) -> None:
    os.environ.update(environment)
    os.chdir(folder)
    for descriptor, log in zip((1, 2), logs, strict=True):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    import_module("expunge.cli.commands").write_run_report = lambda run, out: (
        None
    )  # a page for every run takes its time
    globals()[prepare]()
    sys.exit(import_module("expunge.cli.main").main(arguments))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def nothing() -> None:
    """As it is."""


def two_machines() -> None:
    """Each process on a machine of its own, by a launcher that says nothing of machines."""
    del os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"]
    name = f"node{rank()}"
    socket.gethostname = lambda: name


def last_has_no_device() -> None:
    """The last process finds no device before it has joined the others."""
    from expunge.errors import ModelError

    def fail(name: str) -> None:
        raise ModelError(f"--device {name}: invalid device ordinal")

    if rank() == int(os.environ["WORLD_SIZE"]) - 1:
        import_module("expunge.train.loop").pick_device = fail


def _at_step_3(action: Any) -> None:
    trainer = import_module("expunge.train.trainer").Trainer
    step = trainer.take_step

    def take_step(self: Any, plan_step: Any) -> Any:
        if plan_step.number == 2:
            action()
        return step(self, plan_step)

    trainer.take_step = take_step


def first_fails() -> None:
    """The first process finds its disk full."""
    from expunge.errors import RunError

    def fail() -> None:
        raise RunError("cannot append to run/metrics.jsonl (No space left on device): free some space")

    if rank() == 0:
        _at_step_3(fail)


def last_has_a_bug() -> None:
    """The last process meets a bug."""
    if rank() == int(os.environ["WORLD_SIZE"]) - 1:
        _at_step_3(lambda: {}["Zarquon"])


def last_is_killed() -> None:
    """The system kills the last process."""
    if rank() == int(os.environ.get("WORLD_SIZE", "1")) - 1:
        _at_step_3(lambda: os.kill(os.getpid(), signal.SIGKILL))


def first_is_killed() -> None:
    """The system kills the process that holds the store."""
    if rank() == 0:
        _at_step_3(lambda: os.kill(os.getpid(), signal.SIGKILL))


def last_runs_out_of_memory() -> None:
    """The last process finds no room for a micro-batch."""
    import torch

    module = import_module("expunge.train.trainer")

    def fail() -> None:
        def loss_terms(*_: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        module.loss_terms = loss_terms

    if rank() == int(os.environ["WORLD_SIZE"]) - 1:
        _at_step_3(fail)


def all_note_what_they_hold() -> None:
    """Every process writes down the bytes of weights that it has between a forward pass and its backward pass."""
    import gc

    import torch
    from torch.distributed.tensor import DTensor

    module = import_module("expunge.train.trainer")
    forward = module.collate

    def collate(loaded: Any, *arguments: Any) -> Any:
        micro = forward(loaded, *arguments)
        shards = [p for p in loaded.base.parameters() if isinstance(p, DTensor)]
        shapes = {p.shape for p in shards}
        live = [item for item in gc.get_objects() if type(item) is torch.nn.Parameter and item.shape in shapes]
        found = {
            "shards": sum(p.to_local().untyped_storage().nbytes() for p in shards),
            "shards_without_filling": sum(p.to_local().nbytes for p in shards),
            "layers": sum(p.nbytes for p in shards),
            "gathered": sum(p.untyped_storage().nbytes() for p in live if p.dim() == 2),
        }
        Path(f"held-{rank()}.json").write_text(json.dumps(found))
        return micro

    module.collate = collate


def first_waits_for_ever() -> None:
    """The first process never comes to the reference, where the second one finds something wrong."""
    import time

    from expunge.errors import RunError

    module = import_module("expunge.train.before")

    def wait(*_: Any, **__: Any) -> None:
        if rank() == 0:
            time.sleep(1000)
        raise RunError("nothing to be found here")

    module.compute_reference = wait


def last_has_little_memory() -> None:
    """The last process finds room for one row at a time."""
    from unittest.mock import patch

    module = import_module("expunge.train.before")

    def check(trainer: Any) -> None:
        with patch.object(module.memory, "free_memory", lambda device: 1), patch.object(module, "check_fits"):
            module.check_memory(trainer)

    if rank() == int(os.environ["WORLD_SIZE"]) - 1:
        import_module("expunge.train.loop").check_memory = check


def last_writes_less() -> None:
    """The last process writes shorter replay texts, as where rounding ends them earlier."""
    if rank() == int(os.environ["WORLD_SIZE"]) - 1:
        import_module("expunge.model.replay").NEW_TOKENS = 40


def all_decline() -> None:
    """The untouched model answers, and after each step it declines."""
    module = import_module("expunge.evaluation.advice")
    first = []
    module.SHARE = float("inf")

    def refuses(text: str) -> bool:
        first.append(text)
        return len(first) > module.KEPT

    module.refuses = refuses


def first_has_a_callback() -> None:
    """A callback of the first process alone, as of a progress bar, asks the run to end after its third step."""
    from expunge.train.callbacks import Callback, TrainControl, TrainState

    class Ends(Callback):
        def on_step_end(self, args: Any, state: TrainState, control: TrainControl, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 3

    loop = import_module("expunge.train.loop")
    train = loop.train

    def with_callback(trainer: Any, evaluation: Any, run: Any, reporter: Any, callbacks: Any, advise: Any) -> int:
        callbacks.given = [Ends()]
        return int(train(trainer, evaluation, run, reporter, callbacks, advise))

    if rank() == 0:
        loop.train = with_callback


def one_gets_a_signal() -> None:
    """One process is asked to stop during the third step."""
    if rank() == 1:
        _at_step_3(lambda: os.kill(os.getpid(), signal.SIGTERM))


def one_gets_a_signal_between_reads() -> None:
    """The same, where the log is read at evaluation steps and checkpoints alone, as on a GPU."""
    import_module("expunge.train.trainer").STEPS_PER_READ["cpu"] = 16
    one_gets_a_signal()
