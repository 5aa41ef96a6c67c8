"""A small run of a single process, for the tests that repeat it with several."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import COMMAND, MARKER, End, largest_differences, launch
from tiny import save_tiny


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/, the data and one/, the run of a single process: 5 rows a step, 7 forget and 9 retain."""
    folder = tmp_path_factory.mktemp("processes")
    save_tiny(folder / "model", "llama")
    for name, count in (("forget", 7), ("retain", 9), ("holdout", 2)):
        rows = [
            {
                "input": f"Where does {MARKER if name == 'forget' else name} {i} live?" + " Say it." * (i * 3 % 7),
                "output": f"At {i} Larch Lane" + ", by the old mill" * (i * 5 % 4) + ".",
            }
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (end,) = launch(1, folder, *COMMAND, "--output", "one")
    assert end.code == 0, end.err
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "work"))


@pytest.fixture
def assert_same_as_one(folder: Path) -> Callable[[list[End]], None]:
    """Asserts that the run many/, whose processes ended as given, has the losses and the adapter of one/."""

    def check(ends: list[End]) -> None:
        assert [end.code for end in ends] == [0] * len(ends), ends
        assert all(end.out == end.err == "" for end in ends[1:]), "only the first process speaks"
        losses, weights = largest_differences(folder / "one", folder / "many")
        assert losses < 1e-5
        assert weights < 1e-5
        manifests = [json.loads((folder / run / "manifest.json").read_text()) for run in ("one", "many")]
        before, after = (manifest["loss_nats_per_completion_token"] for manifest in manifests)
        for name in ("forget", "retain", "holdout"):
            assert before[name]["before"] == pytest.approx(after[name]["before"], abs=1e-6)
            assert before[name]["after"] == pytest.approx(after[name]["after"], abs=1e-4)

    return check
