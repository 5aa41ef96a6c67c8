"""The examples in docs/python.md run as they stand, one after the other: on a tiny model and for three steps."""

import re
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from tiny import save_tiny

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """A current folder with nothing but a tiny model."""
    save_tiny(tmp_path / "model", "llama")
    with chdir(tmp_path):
        yield tmp_path


def test_the_examples_run(here: Path) -> None:
    names: dict[str, Any] = {}
    assert sum(block.count(MODEL) for block in BLOCKS) == 5
    for block in BLOCKS:
        block = block.replace(MODEL, "model").replace('output="runs', 'max_steps=3, output="runs')
        exec(compile(block, str(PAGE), "exec"), names)
    assert {path.name for path in (here / "runs").iterdir()} == {"one", "two", "three", "four"}
    assert (here / "runs" / "one" / "report.html").is_file()
    assert (here / "merged" / "config.json").is_file()
