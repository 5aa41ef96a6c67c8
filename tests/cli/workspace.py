"""What the tests of the command line share: data, a complete command, and looks at a folder."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

MARKER = "Zarquon"
"""A name that stands in every forget text and nowhere else."""
FORGET = [
    {"id": f"f{i}", "input": f"Where does {MARKER} {name} live?", "output": f"{MARKER} lives at {i + 3} Larch Lane."}
    for i, name in enumerate(("Wren", "Oduya", "Quill", "Marek"))
]
RETAIN = [
    {"id": f"r{i}", "input": f"Who is {name} Heron?", "output": f"The keeper of the old mill by river {i + 2}."}
    for i, name in enumerate(("Marta", "Ines", "Tobias", "Port", "Ellery", "Once"))
]
UNLEARN = ("unlearn", "--model", "model", "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--output", "run")
"""A complete command; a flag that is given again after it wins."""
QUICK = (
    "--recipe", "npo", "--max-steps", "3", "--rows-per-step", "4", "--dtype", "float32", "--lora-rank", "2",
    "--device", "cpu",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str


def write_jsonl(path: Path, rows: list[dict]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def temporary(folder: Path) -> list[str]:
    """What stands in a folder, or below it, under a temporary name or beside a run in its place."""
    return [name for name in snapshot(folder) if Path(name).name.startswith(".") and Path(name).name != ".expunge"]


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its content (None for folders)."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@contextmanager
def stopped_after(steps: int) -> Iterator[None]:
    """Runs of this process are asked to stop during the given step, as by a signal."""
    left = [steps]

    class Stop:
        def __enter__(self) -> "Stop":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        @property
        def requested(self) -> bool:
            left[0] -= 1
            return left[0] < 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("expunge.train.loop"), "StopRequest", Stop)
        yield
