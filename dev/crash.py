"""Kill runs at random moments, go on with each until it is done, and compare every byte with an uninterrupted run.

python -m dev.crash --kills 60 --seed 0

A run is killed with SIGKILL, either after a random time or right before a random one of its file operations, which
reaches the moments between two of them too. Every run is a child forked from this process, which has loaded
the libraries once; at most one works at a time. Any difference ends the program with exit code 1.
"""

import argparse
import contextlib
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS = {"forget": 24, "retain": 40}
PHASES = (
    "starting and loading", "losses before", "building the reference", "training", "writing a checkpoint",
    "losses after", "writing the result",
)  # fmt: skip
TITLES = {"losses before": 1, "reference": 2, "unlearning": 3, "losses after": 5}
FILE_EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree", "os.chmod"}
TIMEOUT = 120.0
"""Seconds after which a run that was not killed counts as hanging."""


class Shared:
    """What a child tells its parent without any file: its phase and the number of its file operations."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 16)

    def reset(self) -> None:
        """For the next child."""
        self._memory[:] = bytes(16)

    @property
    def phase(self) -> int:
        """Index into PHASES."""
        return self._memory[0]

    @phase.setter
    def phase(self, value: int) -> None:
        self._memory[0] = value

    def count(self) -> int:
        """Note one more file operation; gives its number."""
        number = self.operations + 1
        self._memory[8:16] = number.to_bytes(8, "little")
        return number

    @property
    def operations(self) -> int:
        """File operations so far."""
        return int.from_bytes(self._memory[8:16], "little")


def make_workspace(folder: Path) -> None:
    """A tiny model with two sets of made-up texts."""
    from tiny import save_tiny

    save_tiny(folder / "model", "llama")
    for name, count in ROWS.items():
        rows = [
            {
                "input": f"Where does {name} {i} live?" + " Say it." * (i * 3 % 7),
                "output": f"At {i} Larch Lane" + ", by the old mill" * (i * 5 % 4) + ".",
            }
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def arguments(output: str, *, resume: bool) -> list[str]:
    """The command line of every run; a checkpoint after every second step."""
    words = (
        f"unlearn --model model --forget forget.jsonl --retain retain.jsonl --output {output} --rows-per-step 16 "
        "--epochs 7 --save-every 2 --dtype float32 --device cpu --lora-rank 4 --learning-rate 0.01"
    ).split()
    return [*words, "--resume"] if resume else words


def start(words: list[str], shared: Shared, log: Path, kill_at: int = 0) -> int:
    """Fork a child that runs the command; with `kill_at`, it kills itself before that file operation.

    Returns:
        Its process id.
    """
    shared.reset()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        _watch(shared, kill_at)
        from expunge.cli.main import main

        code = main(words)
    finally:
        sys.stdout.flush()
        os._exit(code)


def _watch(shared: Shared, kill_at: int) -> None:
    """In the child: tell the phase, count the file operations in this folder."""
    from expunge.runs import run
    from expunge.utils import progress

    track = progress.Reporter.track

    @contextlib.contextmanager
    def told(self: progress.Reporter, title: str, *rest: int) -> Iterator[progress.Advance]:
        shared.phase = TITLES.get(title, shared.phase)
        with track(self, title, *rest) as advance:
            yield advance

    progress.Reporter.track = told
    save, finish = run.Run.save_checkpoint, run.Run.finish

    def saved(self: run.Run, *given: object) -> None:
        shared.phase = 4
        save(self, *given)
        shared.phase = 3

    def finished(self: run.Run, *given: object, **named: object) -> run.Outcome:
        shared.phase = 6
        return finish(self, *given, **named)

    run.Run.save_checkpoint, run.Run.finish = saved, finished
    here = os.getcwd()

    def hook(event: str, given: tuple) -> None:
        if event not in FILE_EVENTS or (event == "open" and not _writes(given)):
            return
        path = os.fsdecode(given[0]) if isinstance(given[0], str | bytes | os.PathLike) else ""
        inside = not os.path.isabs(path) or path.startswith(here)
        if inside and path and shared.count() == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _writes(given: tuple) -> bool:
    _, mode, flags = given
    if isinstance(mode, str):
        return any(letter in mode for letter in "wa+x")
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def wait(child: int, seconds: float) -> int | None:
    """The child's exit code (-9 when killed), or None when it still runs after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.001)


def run_to_its_end(output: str, shared: Shared, log: Path) -> float:
    """Run without interruption; gives its seconds."""
    begun = time.monotonic()
    code = wait(start(arguments(output, resume=False), shared, log), TIMEOUT)
    if code != 0:
        raise SystemExit(f"the uninterrupted run ended with {code}; see {log}")
    return time.monotonic() - begun


def run_with_kills(
    output: str, shared: Shared, log: Path, rng: random.Random, seconds: float, operations: int
) -> list[str]:
    """Start a run, kill it, go on, until it is done; gives the phase of every kill.

    Raises:
        SystemExit: A run ended in any other way.
    """
    kills: list[str] = []
    while True:
        resume = Path(output, "manifest.json").exists()
        if resume and json.loads(Path(output, "manifest.json").read_text())["status"] == "done":
            # Killed when all was done but the tidying up: --resume does that, and says that the run is finished.
            code = wait(start(arguments(output, resume=True), shared, log), TIMEOUT)
            if code != 2:
                raise SystemExit(f"{output}: --resume of a finished run ended with {code}; see {log}")
            return kills
        at = rng.randint(1, operations) if rng.random() < 0.5 else 0
        child = start(arguments(output, resume=resume), shared, log, at)
        code = wait(child, TIMEOUT if at else rng.uniform(0, seconds))
        if code is None:
            os.kill(child, signal.SIGKILL)
            code = wait(child, TIMEOUT)
        if code == 0:
            return kills
        if code != -signal.SIGKILL:
            raise SystemExit(f"{output}: ended with {code} after {len(kills)} kills; see {log}")
        kills.append(PHASES[shared.phase])


def content(output: str) -> dict[str, bytes]:
    """What must be equal: the adapter and the metrics, and which files there are."""
    root = Path(output)
    files = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    equal = ("adapter/", "metrics.jsonl")
    return {name: path.read_bytes() if name.startswith(equal) else b"" for name, path in files.items()}


def main() -> int:
    """Parse the command line, run, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="stop after the run in which this number is reached")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import expunge.cli.main
    import expunge.train.dry_run
    import expunge.train.loop  # noqa: F401  (loaded once, for all children)

    folder = Path(tempfile.mkdtemp(prefix="expunge-crash-"))
    log = folder / "log"
    os.chdir(folder)
    make_workspace(folder)
    shared, rng = Shared(), random.Random(options.seed)
    seconds = run_to_its_end("whole", shared, log)
    operations = shared.operations
    seconds = min(seconds, run_to_its_end("again", shared, log))
    whole = content("whole")
    steps = len(whole["metrics.jsonl"].splitlines())
    print(f"a run: {seconds:.1f} s, {steps} steps, {operations} file operations", flush=True)
    if content("again") != whole:
        raise SystemExit("two uninterrupted runs differ")
    phases: Counter[str] = Counter()
    most = runs = 0
    begun = time.monotonic()
    while phases.total() < options.kills:
        kills = run_with_kills("run", shared, log, rng, seconds, operations)
        found = content("run")
        if found != whole:
            different = sorted(name for name in found.keys() | whole.keys() if found.get(name) != whole.get(name))
            raise SystemExit(
                f"after {len(kills)} kills ({', '.join(kills)}) these differ: {different}; {folder} is left"
            )
        left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        if left:
            raise SystemExit(f"left beside the run after {', '.join(kills)}: {left}; {folder} is left")
        phases.update(kills)
        runs, most = runs + 1, max(most, len(kills))
        shutil.rmtree("run")
        print(f"run {runs}: {len(kills)} kills, all files equal ({phases.total()} kills so far)", flush=True)
    print(f"\n| killed while | kills |\n|---|---|\n{_rows(phases)}\n| all | {phases.total()} |")
    print(
        f"\n{runs} runs, at most {most} kills in one, {time.monotonic() - begun:.0f} s; all adapters and logs identical"
    )
    errors = log.read_text().count("Traceback")
    shutil.rmtree(folder)
    return 1 if errors else 0


def _rows(phases: Counter[str]) -> str:
    return "\n".join(f"| {name} | {phases[name]} |" for name in PHASES)


if __name__ == "__main__":
    sys.exit(main())
