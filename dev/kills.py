"""Kill each command at every write and rename that it does, and at random times, and look at what is left: old or new.

python -m dev.kills --random 30 --again 10 --seed 0

The moments are found by a tracer: in a child every function that changes a file is followed. Before each, the process
forks, its copy is killed there, and the folder as it stands is set aside. Further children are killed from outside at
random times. What is left is read as the next command would read it, and compared byte for byte with the state before
and the one after; times and memory in the manifest aside. After some kills the command is given again, and must end
with the state after. A mixture, or nothing at all, ends the program with exit code 1.
"""

import argparse
import builtins
import hashlib
import io
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
ADAPTER = ["unlearn", "--model", "other", *DATA, *QUICK, "--output", "stacked"]
CALIBRATED = ["--holdout", "holdout.jsonl", "--device", "cpu"]
COMMANDS = {
    "unlearn --overwrite": ([*UNLEARN, "--seed", "3", "--overwrite"], "run"),
    "merge --overwrite": (["merge", "--run", "run", "--output", "merged", "--overwrite", "--device", "cpu"], "merged"),
    "evaluate --overwrite": ([*CUSTOM, "--adapter", "run", *SCORES], "scores"),
    "calibrate": (["calibrate", "--run", "run", *CALIBRATED], "run"),
    "calibrate an adapter on an adapter": (["calibrate", "--run", "stacked", *CALIBRATED], "stacked"),
    "merge": (["merge", "--run", "run", "--output", "first", "--device", "cpu"], "first"),
    "evaluate --run": (["evaluate", "--run", "run", "--overwrite", "--max-new-tokens", "2", "--device", "cpu"], "run"),
}
"""Name -> words, and what it changes."""
OF_A_START = ("started", "finished", "training_seconds", "total_seconds", "peak_memory_bytes")
PAGES = ("report.html", "verdict.json")
CARD = "run/adapter/README.md"
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
        ADAPTER,
    ):
        code = run(words)
        if code not in DONE:
            raise SystemExit(f"{' '.join(words)} ended with {code}; see {Path('log').resolve()}")


def run(words: list[str], aside: Path | None = None, kill_after: float | None = None) -> int:
    """Run a command in a child.

    Args:
        words: The command line.
        aside: Folder for a copy of this one before every operation.
        kill_after: Kill the child after so many seconds.

    Returns:
        The exit code; -9 when killed.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            descriptor = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            if aside:
                trace(aside)
            from expunge.cli.main import main

            code = main(words)
        finally:
            os._exit(code)
    begun = time.monotonic()
    while (spent := time.monotonic() - begun) < TIMEOUT:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if kill_after is not None and spent >= kill_after:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    raise SystemExit(f"{' '.join(words)} hangs")


def trace(aside: Path) -> None:
    """In the child: before every operation on files in this folder, kill a copy of the process and keep the folder."""
    import safetensors.torch

    from expunge.utils import folders

    here = os.getcwd() + os.sep
    number, within = 0, False

    def moment() -> None:
        nonlocal number, within
        number += 1
        within = True
        copy = os.fork()
        if copy == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(copy, 0)
        shutil.copytree(here, aside / f"{number:04d}", symlinks=True)
        within = False

    def followed(original: Callable[..., Any], judge: Callable[..., bool]) -> Callable[..., Any]:
        def wrapper(*given: Any, **named: Any) -> Any:
            if not within and judge(*given, **named):
                moment()
            return original(*given, **named)

        return wrapper

    def inside(path: Any, *_: Any, **__: Any) -> bool:
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return False
        path = os.path.abspath(os.fsdecode(path))
        return path.startswith(here) and path != here + "log"

    def writes(path: Any, flags: int, *_: Any, **__: Any) -> bool:
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) and inside(path)

    def opens(path: Any, mode: str = "r", *_: Any, **__: Any) -> bool:
        return any(letter in mode for letter in "wax+") and inside(path)

    for name in TRACED:
        setattr(os, name, followed(getattr(os, name), writes if name == "open" else inside))
    builtins.open = io.open = followed(builtins.open, opens)  # type: ignore[assignment]
    folders._exchange_at_once = followed(folders._exchange_at_once, lambda *_: True)
    save = safetensors.torch.serialize_file  # type: ignore[attr-defined]
    safetensors.torch.serialize_file = followed(save, lambda *_, **__: True)  # type: ignore[attr-defined]


def state(kind: str) -> dict[str, str]:
    """What a reader finds, as hashes: files of a run, of a merged model, or a results file with its values."""
    from expunge.runs.lock import hold
    from expunge.utils import files, listing

    if kind == "scores":
        files.settle(Path())
        paths = [Path("scores.json"), Path("scores.parquet")]
    elif kind in ("merged", "first"):
        paths = sorted(path for path in Path(kind).rglob("*") if path.is_file())
    else:
        with hold(Path(kind)):
            pass
        names = ("config.yaml", "manifest.json", "metrics.jsonl", "calibration.json", "results.json", "results.parquet")
        names += ("results_before.json", "results_before.parquet", "report.html", "verdict.json")
        paths = [Path(kind, name) for name in names] + sorted(Path(kind, "adapter").rglob("*.*"))
    paths = [path for path in paths if path.exists() and not listing.TEMPORARY.fullmatch(path.name)]
    return {str(path): hashlib.sha256(content(path)).hexdigest() for path in paths}


def content(path: Path) -> bytes:
    """A file's bytes; of a manifest without times and memory, of a page, which shows them, that it is there."""
    if path.name == "report.html":
        return b""
    if path.name != "manifest.json":
        return path.read_bytes()
    manifest = json.loads(path.read_text())
    return json.dumps({name: value for name, value in manifest.items() if name not in OF_A_START}).encode()


def main() -> int:
    """Parse the command line, kill, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=int, default=20, help="kills of each command at random times")
    parser.add_argument("--again", type=int, default=8, help="kills after which each command is given again")
    parser.add_argument("--seed", type=int, default=0, help="of the made-up texts and of the choice")
    parser.add_argument("--only", default="", help="parts of the names of commands, separated by commas")
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
    rng = random.Random(options.seed)
    print("| command | moments | kills | old | new | given again |\n|---|---|---|---|---|---|", flush=True)
    faults = 0
    for name, (words, kind) in COMMANDS.items():
        if not any(part in name for part in options.only.split(",")):
            continue
        faults += kill(name, words, kind, folder, options, rng)
    os.chdir("/")
    shutil.rmtree(folder)
    return 1 if faults else 0


def kill(name: str, words: list[str], kind: str, folder: Path, options: argparse.Namespace, rng: random.Random) -> int:
    """Kill one command at all its moments and at random times; the number of faults."""
    start, work, aside = folder / "start", folder / "work", folder / "aside"
    os.chdir(start)
    before = state(kind)
    fresh(start, work)
    begun = time.monotonic()
    if run(words) not in DONE:
        raise SystemExit(f"{name} ended badly; see {work / 'log'}")
    seconds, after = time.monotonic() - begun, state(kind)
    fresh(start, work)
    if run(words, aside) not in DONE:
        raise SystemExit(f"{name} ended badly; see {work / 'log'}")
    moments = sorted(aside.iterdir())
    found: Counter[str] = Counter()
    faults = 0

    def look(at: str, *, again: bool) -> None:
        nonlocal faults
        left = state(kind)
        # Scores are whole before the card has them, which is the old one until then.
        card = CARD if name.startswith("evaluate") and left.get(CARD) in (before.get(CARD), after.get(CARD)) else ""
        left.pop(card, None)
        old, new = (  # whole without page and verdict, which are made from them
            {
                path: value
                for path, value in whole.items()
                if path != card and (path in left or not path.endswith(PAGES))
            }
            for whole in (before, after)
        )
        found["old" if left == old else "new" if left == new else "mixture"] += 1
        if left not in (old, new):
            different = sorted(key for key in left.keys() | before.keys() if left.get(key) != before.get(key))
            print(f"{name}, killed {at}: neither old nor new: {different}", flush=True)
            faults += 1
        if again:
            found["again"] += 1
            if (code := run(words)) not in DONE or state(kind) != after:
                print(f"{name}, killed {at} and given again: exit code {code}, or another state", flush=True)
                faults += 1

    repeated = set(rng.sample(range(len(moments)), min(options.again, len(moments))))
    for place, moment in enumerate(moments):
        fresh(moment, work)
        look(f"before operation {place + 1}", again=place in repeated)
    for _ in range(options.random):
        fresh(start, work)
        after_seconds = rng.uniform(0, seconds)
        run(words, kill_after=after_seconds)
        look(f"after {after_seconds:.3f} s", again=False)
    shutil.rmtree(aside)
    kills = found["old"] + found["new"] + found["mixture"]
    row = (name, len(moments), kills, found["old"], found["new"], found["again"])
    print("| " + " | ".join(map(str, row)) + " |", flush=True)
    return faults


def fresh(start: Path, work: Path) -> None:
    """A copy of a folder, which is the current folder."""
    os.chdir(start)
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(start, work, symlinks=True)
    os.chdir(work)


if __name__ == "__main__":
    sys.exit(main())
