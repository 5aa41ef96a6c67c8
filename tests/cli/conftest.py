"""A folder with a tiny model, data files and a finished run, and the command line run in it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path

import pytest
from workspace import FORGET, QUICK, RETAIN, UNLEARN, Result, write_jsonl

from expunge.cli import main
from tiny import save_tiny


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `work` is a copy of: model/, forget.jsonl, retain.jsonl and the finished run done/."""
    folder = tmp_path_factory.mktemp("template")
    save_tiny(folder / "model", "llama")
    write_jsonl(folder / "forget.jsonl", FORGET)
    write_jsonl(folder / "retain.jsonl", RETAIN)
    with chdir(folder):
        assert main([*UNLEARN, *QUICK, "--output", "done"]) == 0
    return folder


@pytest.fixture
def work(template: Path, tmp_path: Path) -> Iterator[Path]:
    """A private copy of `template`, which is the current folder during the test."""
    folder = tmp_path / "work"
    shutil.copytree(template, folder)
    with chdir(folder):
        yield folder


@pytest.fixture
def expunge(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run a command in this process: `expunge("unlearn", "--model", ...)`."""

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        code = main(list(arguments))
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run
