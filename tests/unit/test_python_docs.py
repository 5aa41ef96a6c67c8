"""The examples in docs/python.md, then in docs/serving.md, run as they stand: on a tiny model, for three steps."""

import re
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from expunge import UnlearnConfig
from expunge.report.page import Drawings
from tiny import save_tiny

DOCS = Path(__file__).resolve().parents[2] / "docs"
SERVED_RANK = 16
"""Largest rank that vLLM serves without a flag."""
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def blocks(name: str) -> list[str]:
    """The examples on a page."""
    page = (DOCS / name).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with nothing but a tiny model; pages have no figures, which take longer than these runs."""
    monkeypatch.setattr("expunge.report.page.draw", lambda groups: Drawings())
    save_tiny(tmp_path / "model", "llama")
    with chdir(tmp_path):
        yield tmp_path


def test_the_examples_run(here: Path) -> None:
    names: dict[str, Any] = {}
    examples = [*blocks("python.md"), *blocks("serving.md")]
    assert sum(block.count(MODEL) for block in examples) == 5
    for block in examples:
        block = block.replace(MODEL, "model").replace('output="runs', 'max_steps=3, output="runs')
        block = block.replace("outcome.evaluate()", "outcome.evaluate(max_new_tokens=8)")
        exec(compile(block, "example", "exec"), names)
    assert {path.name for path in (here / "runs").iterdir()} == {"one", "two", "three", "four"}
    assert (here / "runs" / "one" / "report.html").is_file()
    assert (here / "merged" / "config.json").is_file()


def test_servers_take_the_default_rank_and_the_page_says_what_more_needs() -> None:
    page = (DOCS / "serving.md").read_text(encoding="utf-8")
    assert UnlearnConfig(model="m").lora_rank <= SERVED_RANK
    assert f"--max-lora-rank {SERVED_RANK}" in page
    assert "still serves what" in page
