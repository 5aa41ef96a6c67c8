"""A folder with a tiny model, data files and a finished run, and the command line run in it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir
from importlib import import_module
from pathlib import Path

import pytest
from benchmark_data import write_muse, write_tofu
from workspace import FORGET, QUICK, RETAIN, UNLEARN, Result, write_jsonl

from expunge.cli.main import main
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
    named = folder / "done/adapter/adapter_config.json"
    named.write_text(named.read_text().replace(str(template), str(folder)))
    with chdir(folder):
        yield folder


@pytest.fixture
def figures() -> None:
    """Asked for by tests of pages: their runs draw the figures, which takes as long as a tiny run itself."""


@pytest.fixture(autouse=True)
def _without_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "figures" not in request.fixturenames:
        nothing = import_module("expunge.report.page").Drawings()
        monkeypatch.setattr("expunge.report.page.draw", lambda groups: nothing)


@pytest.fixture
def expunge(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run a command in this process: `expunge("unlearn", "--model", ...)`."""

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        code = main(list(arguments))
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a twin, a model of another tokenizer, and the data of every benchmark."""
    folder = tmp_path_factory.mktemp("bench")
    save_tiny(folder / "model", "llama")
    save_tiny(folder / "twin", "llama", seed=1)
    save_tiny(folder / "stranger", "llama", "metaspace")
    write_tofu(folder / "tofu")
    write_muse(folder / "muse")
    (folder / "lume").mkdir()
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        kinds = [("Task1", "sc1"), ("Task1", "qa0"), ("Task2", "sc1"), ("Task2", "qa0")]
        rows = [{**row, "id": row["id"] + kind, "task": task} for row, (task, kind) in zip(rows, kinds, strict=False)]
        write_jsonl(folder / "lume" / f"{name}.jsonl", rows)
    write_jsonl(folder / "forget.jsonl", FORGET)
    write_jsonl(folder / "retain.jsonl", RETAIN)
    holdout = [{"text": f"Tobias {n} closed the book. {'The fox slept near the mill. ' * 6}"} for n in range(5)]
    write_jsonl(folder / "holdout.jsonl", holdout)
    return folder


@pytest.fixture
def here(bench: Path, tmp_path: Path) -> Iterator[Path]:
    """An empty current folder with links to everything in `bench`."""
    for path in bench.iterdir():
        (tmp_path / path.name).symlink_to(path)
    with chdir(tmp_path):
        yield tmp_path
