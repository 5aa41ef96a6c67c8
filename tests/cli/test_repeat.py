"""`--from-manifest` repeats a run, and refuses what would not be the same one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from breakage import check, file, other_model, row, setting
from workspace import Result

Run = Callable[..., Result]
AGAIN = ("unlearn", "--from-manifest", "done/manifest.json", "--output", "again")


def adapter(run: str) -> bytes:
    return Path(run, "adapter/adapter_model.safetensors").read_bytes()


def test_the_same_adapter_from_the_manifest_alone(work: Path, expunge: Run) -> None:
    result = expunge(*AGAIN)

    assert result.code == 0, result.err
    assert "last digits" not in result.err
    assert adapter("again") == adapter("done")
    assert Path("again/metrics.jsonl").read_bytes() == Path("done/metrics.jsonl").read_bytes()
    then, now = (json.loads(Path(run, "manifest.json").read_text()) for run in ("done", "again"))
    for name in ("settings", "data", "model_sha256", "adapter_sha256", "versions", "hardware"):
        assert then[name] == now[name]


def test_files_may_have_moved(work: Path, expunge: Run) -> None:
    Path("elsewhere").mkdir()
    for name in ("model", "forget.jsonl", "retain.jsonl"):
        shutil.move(name, f"elsewhere/{name}")
    flags = [word for name in ("model", "forget", "retain") for word in (f"--{name}", f"elsewhere/{name}")]
    flags = [word + ".jsonl" if word in ("elsewhere/forget", "elsewhere/retain") else word for word in flags]

    assert expunge(*AGAIN, *flags).code == 0
    assert adapter("again") == adapter("done")


def test_other_versions_or_hardware_are_said(work: Path, expunge: Run) -> None:
    path = Path("done/manifest.json")
    manifest = json.loads(path.read_text())
    manifest["versions"]["torch"] = "2.6.0"
    manifest["hardware"]["threads"] = 64
    path.write_text(json.dumps(manifest))

    result = expunge(*AGAIN)

    assert result.code == 0
    warnings = [line for line in result.err.splitlines() if "last digits" in line]
    assert any("torch 2.6.0 then" in line for line in warnings)
    assert any("threads 64 then" in line for line in warnings)


CASES = {
    "other data": (
        AGAIN,
        "the run of done/manifest.json had other rows of the forget set",
        row(output="Elsewhere."),
    ),
    "other weights": (AGAIN, "had other the model's weights or configuration", other_model),
    "other configuration": (AGAIN, "the model's weights", setting("model/config.json", rms_norm_eps=1e-5)),
    "other settings": ((*AGAIN, "--seed", "5"), "had other seed (0 then, 5 now)", None),
    "no manifest": (("unlearn", "--from-manifest", "none.json", "--output", "again"), "none.json: cannot be", None),
    "not a manifest": (AGAIN, "manifest.json: damaged or something else", file("done/manifest.json", "[]")),
    "settings of another version": (
        AGAIN,
        "holds settings of another version of Expunge (colour)",
        file(
            "done/manifest.json",
            json.dumps({"status": "done", "settings": {"colour": 1}, "data": {}, "model_sha256": ""}),
        ),
    ),
    "without output": (AGAIN[:3], "--output is missing", None),
    "and resume": ((*AGAIN, "--resume"), "contradict each other", None),
}
AFTER_LOADING = {"other data", "other weights", "other configuration", "other settings"}


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_the_same_run_is_refused(name: str, work: Path, expunge: Run) -> None:
    check(CASES[name], work, expunge, after_loading=name in AFTER_LOADING)
