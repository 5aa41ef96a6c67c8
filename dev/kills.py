"""Kill each command at every write and rename that it does, and look at what is left: the old state or the new one.

python -m dev.kills --most 200 --seed 0

The moments are found by a tracer: in a child every function of `os` that changes a file is counted, and the child kills
itself right before a chosen one. What is left is read as the next command would read it, and compared byte for byte
with the state before and the one after; times and memory in the manifest aside. A mixture, or nothing at all, ends the
program with exit code 1.
"""

import argparse
import builtins
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TRACED = (
    "open", "write", "pwrite", "fsync", "rename", "replace", "unlink", "remove", "rmdir", "mkdir", "chmod", "ftruncate",
)  # fmt: skip
QUICK = [
    "--max-steps", "3", "--rows-per-step", "4", "--save-every", "1", "--dtype", "float32", "--lora-rank", "2",
    "--device", "cpu",
]  # fmt: skip
DATA = ["--forget", "forget.jsonl", "--retain", "retain.jsonl"]
UNLEARN = ["unlearn", "--model", "model", *DATA, *QUICK, "--output", "run"]
CUSTOM = ["evaluate", "--model", "model", "--benchmark", "custom", *DATA, "--max-new-tokens", "2", "--device", "cpu"]
SCORES = ["--output", "scores.json", "--overwrite"]
COMMANDS = {
    "unlearn --overwrite": ([*UNLEARN, "--seed", "3", "--overwrite"], "run"),
    "merge --overwrite": (["merge", "--run", "run", "--output", "merged", "--overwrite", "--device", "cpu"], "merged"),
    "evaluate --overwrite": ([*CUSTOM, "--adapter", "run", *SCORES], "scores"),
    "calibrate": (["calibrate", "--run", "run", "--holdout", "holdout.jsonl", "--device", "cpu"], "run"),
}
"""Name -> words, and what it changes."""
OF_A_START = ("started", "finished", "training_seconds", "total_seconds", "peak_memory_bytes", "energy_joules")
DONE = (0, 3)
TIMEOUT = 300.0


def make_workspace(folder: Path, seed: int) -> None:
    """A tiny model, made-up texts, a finished run, and what the other commands are to replace."""
    from tiny import save_tiny

    rng = random.Random(seed)
    save_tiny(folder / "model", "llama")

    def word() -> str:
        return "".join(rng.choice("abdefgiklmnoprstuvz") for _ in range(7))

    for name, count in (("forget", 20), ("retain", 20), ("holdout", 20)):
        rows = [
            {"input": f"{word()} {word()} {word()}?", "output": f"{word()} {word()} {word()} {word()}."}
            for _ in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for words in (
        UNLEARN,
        [*UNLEARN[:-1], "other", "--seed", "7"],
        ["merge", "--run", "other", "--output", "merged", "--device", "cpu"],
        [*CUSTOM, *SCORES],
    ):
        code = run(words)
        if code not in DONE:
            raise SystemExit(f"{' '.join(words)} ended with {code}; see {Path('log').resolve()}")
    shutil.rmtree("other")


def run(words: list[str], kill_at: int = 0, count: list[int] | None = None) -> int:
    """Run a command in a child; with `kill_at` it kills itself before that operation.

    Args:
        words: The command line.
        kill_at: Number of the operation, from 1; 0 for none.
        count: Gets the number of operations of a run that came to its end.

    Returns:
        The exit code; -9 when killed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            descriptor = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            done = trace(kill_at)
            from expunge.cli.main import main

            code = main(words)
            os.write(writer, str(done()).encode())
        finally:
            os._exit(code)
    os.close(writer)
    told = os.read(reader, 100)
    os.close(reader)
    if count is not None and told:
        count.append(int(told))
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    raise SystemExit(f"{' '.join(words)} hangs")


def trace(kill_at: int) -> Callable[[], int]:
    """In the child: count the operations on files below this folder; gives what tells their number."""
    from expunge.utils import folders

    here = os.getcwd() + os.sep
    number = 0

    def counted(name: str, original: Callable[..., Any], judge: Callable[..., bool]) -> Callable[..., Any]:
        def wrapper(*given: Any, **named: Any) -> Any:
            nonlocal number
            if judge(*given, **named):
                number += 1
                if number == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return original(*given, **named)

        return wrapper

    def own(path: Any) -> bool:
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return False
        path = os.path.abspath(os.fsdecode(path))
        return path.startswith(here) and path != here + "log"

    def writes(path: Any, flags: int, *_: Any, **__: Any) -> bool:
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) and own(path)

    def opens(path: Any, mode: str = "r", *_: Any, **__: Any) -> bool:
        return any(letter in mode for letter in "wax+") and own(path)

    for name in TRACED:
        judge = writes if name == "open" else lambda path, *_, **__: own(path)
        setattr(os, name, counted(name, getattr(os, name), judge))
    builtins.open = counted("open", builtins.open, opens)  # type: ignore[assignment]
    at_once = folders._exchange_at_once
    folders._exchange_at_once = counted("exchange", at_once, lambda *_: True)
    return lambda: number


def state(kind: str) -> dict[str, str]:
    """What a reader finds, as hashes: files of a run, of a merged model, or a results file with its values."""
    from expunge.runs import directory
    from expunge.utils import files, listing

    if kind == "scores":
        files.settle(Path())
        paths = [Path("scores.json"), Path("scores.parquet")]
    elif kind == "merged":
        paths = sorted(path for path in Path("merged").rglob("*") if path.is_file())
    else:
        directory.recover(Path("run"))
        names = ("config.yaml", "manifest.json", "metrics.jsonl", "calibration.json")
        paths = [Path("run", name) for name in names] + sorted(Path("run/adapter").glob("*"))
    paths = [path for path in paths if path.exists() and not listing.TEMPORARY.fullmatch(path.name)]
    return {str(path): hashlib.sha256(content(path)).hexdigest() for path in paths}


def content(path: Path) -> bytes:
    """A file's bytes; of a manifest without times and memory."""
    if path.name != "manifest.json":
        return path.read_bytes()
    manifest = json.loads(path.read_text())
    return json.dumps({name: value for name, value in manifest.items() if name not in OF_A_START}).encode()


def main() -> int:
    """Parse the command line, kill, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=200, help="kills of each command; evenly chosen where it does more")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after this time")
    parser.add_argument("--seed", type=int, default=0, help="of the made-up texts and of the choice")
    parser.add_argument("--only", help="part of the name of a command")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    folder = Path(tempfile.mkdtemp(prefix="expunge-kills-"))
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    import expunge.cli.main
    import expunge.evaluation.run
    import expunge.report.page
    import expunge.train.calibrate
    import expunge.train.dry_run
    import expunge.train.loop
    import expunge.train.merge  # noqa: F401  (loaded once, for all children)

    start = folder / "start"
    start.mkdir()
    os.chdir(start)
    make_workspace(start, options.seed)
    end = time.monotonic() + 60 * options.minutes
    rng = random.Random(options.seed)
    print("| command | operations | kills | old | new |\n|---|---|---|---|---|", flush=True)
    faults = 0
    for name, (words, kind) in COMMANDS.items():
        if options.only and options.only not in name:
            continue
        os.chdir(start)
        before = state(kind)
        work = folder / "work"
        counts: list[int] = []
        fresh(start, work)
        if run(words, count=counts) not in DONE:
            raise SystemExit(f"{name} ended badly; see {work / 'log'}")
        after = state(kind)
        moments = range(1, counts[0] + 1)
        chosen = sorted(rng.sample(moments, min(options.most, len(moments))))
        found: Counter[str] = Counter()
        for moment in chosen:
            if time.monotonic() > end:
                break
            fresh(start, work)
            run(words, moment)
            left = state(kind)
            found["old" if left == before else "new" if left == after else "mixture"] += 1
            if left not in (before, after):
                faults += 1
                different = sorted(key for key in left.keys() | before.keys() if left.get(key) != before.get(key))
                print(f"killed before operation {moment} of {name}: neither old nor new: {different}", flush=True)
        print(f"| {name} | {counts[0]} | {found.total()} | {found['old']} | {found['new']} |", flush=True)
    os.chdir("/")
    shutil.rmtree(folder)
    return 1 if faults else 0


def fresh(start: Path, work: Path) -> None:
    """A copy of the workspace, which is the current folder."""
    os.chdir(start)
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(start, work)
    os.chdir(work)


if __name__ == "__main__":
    sys.exit(main())
