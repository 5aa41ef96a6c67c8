"""A run on a name of the Hub is one on the commit that it was made on, whatever is committed there later."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from workspace import QUICK, UNLEARN, Result, stopped_after

from expunge import load_unlearned
from expunge.errors import RunError
from expunge.runs.manifest import model_fingerprint

Run = Callable[..., Result]
NAME = "some/model"


@pytest.fixture
def commit(work: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Puts the model on the Hub, which is out of reach: its branch leads to the commit that is given."""
    for name in ("huggingface_hub.constants.HF_HUB_CACHE", "transformers.utils.hub.constants.HF_HUB_CACHE"):
        monkeypatch.setattr(name, str(work / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def put(letter: str) -> str:
        place = work / "hub/models--some--model"
        shutil.copytree(work / "model", place / "snapshots" / (letter * 40))
        (place / "snapshots" / (letter * 40) / "README.md").write_text(letter)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs/main").write_text(letter * 40)
        return letter * 40

    return put


def test_a_later_commit_locks_no_run_out(work: Path, expunge: Run, commit: Callable[[str], str]) -> None:
    first = commit("a")
    with stopped_after(2):
        assert expunge(*UNLEARN, *QUICK, "--model", NAME).code != 0
    commit("b")
    assert expunge("unlearn", "--resume", "--output", "run").code == 0
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert manifest["settings"]["revision"] == first
    assert manifest["model_sha256"] == model_fingerprint(NAME, first)
    assert json.loads(Path("run/adapter/adapter_config.json").read_text())["revision"] == first

    load_unlearned("run", device="cpu")
    assert expunge("merge", "--run", "run", "--output", "merged", "--device", "cpu").code == 0
    scored = expunge("evaluate", "--run", "run", "--device", "cpu", "--dtype", "float32", "--max-new-tokens", "8")
    assert (scored.code, "made on" in scored.err) == (0, False)
    assert json.loads(Path("run/results.json").read_text())["fingerprint"]["base"] == manifest["model_sha256"]
    assert expunge(*UNLEARN, "--from-manifest", "run/manifest.json", "--output", "again", "--model", NAME).code == 0
    moved = expunge(*UNLEARN, "--from-manifest", "run/manifest.json", "--output", "other", "--model", "model")
    assert "other revision" in moved.err
    with pytest.raises(RunError, match=r"some/model is another model than .* name its commit as `revision`"):
        _without_revision(first, manifest["model_sha256"])


def _without_revision(first: str, known: str) -> None:
    """The run without its commit, which is in the fingerprint alone."""
    for file in ("manifest.json", "adapter/adapter_config.json"):
        path = Path("run") / file
        path.write_text(path.read_text().replace(f'"{first}"', "null").replace(first, "null"))
    manifest = json.loads(Path("run/manifest.json").read_text())
    Path("run/manifest.json").write_text(json.dumps(manifest | {"model_sha256": known}))
    load_unlearned("run", device="cpu")
