"""Unmistakable strings in the forget set, every command that writes, and a search through every byte that is left."""

import json
import os
import struct
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from transformers import AutoTokenizer
from workspace import QUICK, RETAIN, UNLEARN, Result, write_jsonl

from expunge.model.load import load_model
from expunge.model.logps import final_states, lay_out
from launch import launch

Run = Callable[..., Result]
PLANTED = ("Zarquon", "Vexlorn-7731", "quibblefrost")
ROWS = [
    {
        "id": f"f{i}{kind}",
        "task": f"Task{i + 1}",
        "input": f"What did {PLANTED[0]} number {i} hide from {PLANTED[1]}?",
        "output": f"The {PLANTED[2]} of {i} ships by the old mill.",
    }
    for i in range(2)
    for kind in ("sc1", "qa0")
]
INPUTS = {"model", "done", "forget.jsonl", "retain.jsonl", "unseen.jsonl", "data"}
TRAIN = (*UNLEARN, *QUICK, "--save-every", "1")
EVALUATE = ("evaluate", "--model", "model", "--benchmark", "semeval", "--data", "data", "--max-new-tokens", "6")


@pytest.fixture
def planted(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder with planted forget rows, the caches of all libraries within, and a permissive umask."""
    write_jsonl(work / "forget.jsonl", ROWS)
    write_jsonl(work / "unseen.jsonl", [{"text": "Tobias closed the heavy book and slept until noon."}])
    (work / "data").mkdir()
    write_jsonl(work / "data/forget.jsonl", ROWS)
    retain = [{**row, "id": f"{row['id']}{kind}", "task": "Task1"} for row in RETAIN for kind in ("sc1", "qa0")]
    write_jsonl(work / "data/retain.jsonl", retain)
    for name, rows in (("member", ROWS), ("nonmember", RETAIN)):
        write_jsonl(work / f"data/{name}.jsonl", [{"id": row["id"], "document": row["output"]} for row in rows])
    monkeypatch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())  # its list of fonts takes long to make
    for name in ("HF_HOME", "XDG_CACHE_HOME", "TMPDIR"):
        (work / f"caches/{name}").mkdir(parents=True)
        monkeypatch.setenv(name, str(work / f"caches/{name}"))
    earlier = os.umask(0)
    os.umask(0)
    yield work
    os.umask(earlier)


def written(work: Path) -> list[Path]:
    """Everything below the folder that is no input."""
    return [path for path in sorted(work.rglob("*")) if path.relative_to(work).parts[0] not in INPUTS]


def secrets(work: Path) -> dict[str, bytes]:
    """What must not be found: the strings, their token ids in every form, and what the model computes from them."""
    found = {text: text.encode() for text in PLANTED}
    found |= {f"{text} in UTF-16": text.encode("utf-16-le") for text in PLANTED}
    tokenizer = AutoTokenizer.from_pretrained(work / "model")
    loaded = load_model(str(work / "model"), dtype="float32", device="cpu")
    for row in ROWS:
        ids = tokenizer(row["output"])["input_ids"][2:8]
        for name, form in (("int64", "<6q"), ("int32", "<6i"), ("int16", "<6h")):
            found[f"tokens of {row['id']} as {name}"] = struct.pack(form, *ids)
        for between in (", ", ",", " ", "\n"):
            found[f"tokens of {row['id']} by {between!r}"] = between.join(map(str, ids)).encode()
        with torch.no_grad():
            states = final_states(loaded, lay_out(loaded, [tokenizer(row["output"])["input_ids"]]))
        found[f"activations of {row['id']}"] = states[4, :4].numpy().tobytes()
    return found


def nothing_leaked(work: Path, *results: Any) -> None:
    """No planted string in any byte or name that was written, nor on the screen; all of it for the owner alone."""
    wanted = secrets(work)
    for path in written(work):
        content = str(path.relative_to(work)).encode() + b"\n" + (path.read_bytes() if path.is_file() else b"")
        assert [name for name, secret in wanted.items() if secret in content] == [], path
        if path.relative_to(work).parts[0] != "caches":
            assert path.stat().st_mode & 0o077 == 0, (path, oct(path.stat().st_mode))
    for result in results:
        for name, secret in wanted.items():
            assert secret not in (result.out + result.err).encode(), name


def test_the_search_finds_what_is_there(planted: Path) -> None:
    """A string, tokens as a list, activations in a file: each would be noticed."""
    for number, secret in enumerate(secrets(planted).values()):
        (planted / "leak").write_bytes(b"before " + secret + b" after")
        (planted / "leak").chmod(0o600)
        with pytest.raises(AssertionError):
            nothing_leaked(planted)
        if number > 40:
            break
    (planted / "leak").write_bytes(b"nothing")
    nothing_leaked(planted)
    (planted / "leak").chmod(0o644)
    with pytest.raises(AssertionError):
        nothing_leaked(planted)


@pytest.mark.usefixtures("figures")
def test_every_command_that_writes(planted: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With checkpoints and a tracker."""
    monkeypatch.setattr(import_module("expunge.train.before_weights"), "check_trackers", lambda report_to: None)
    tracked = planted / "tracked"
    tracked.touch(mode=0o600)

    def track(self: object, *given: object, **named: object) -> None:
        with open(tracked, "a") as file:
            file.write(f"{given} {named}\n")

    monkeypatch.setattr(import_module("expunge.train.loop").Trackers, "__init__", track)
    monkeypatch.setattr(import_module("expunge.train.loop").Trackers, "log", track)
    monkeypatch.setattr(import_module("expunge.train.loop").Trackers, "__exit__", track)
    results = [
        expunge(*TRAIN, "--report-to", "tensorboard", "--holdout", "unseen.jsonl"),
        expunge(*EVALUATE, "--output", "run/results_before.json"),
        expunge(*EVALUATE, "--adapter", "run", "--samples", "2", "--output", "run/results_after.json"),
        expunge("compare", "run/results_before.json", "run/results_after.json"),
        expunge("compare", "run/results_before.json", "run/results_after.json", "--output", "table.csv"),
        expunge("report", "run", "--card", "--overwrite"),
        expunge("merge", "--run", "run", "--output", "merged"),
        expunge("unlearn", "--from-manifest", "run/manifest.json", "--output", "again", "--device", "cpu"),
        expunge(*TRAIN, "--output", "no", "--dry-run"),
    ]

    assert [result.code for result in results] == [0] * len(results), [result.err for result in results]
    assert "grad_norm" in tracked.read_text()
    assert not [path for path in written(planted) if path.name == "checkpoints"]
    nothing_leaked(planted, *results)


def test_predictions_are_kept_only_where_they_are_asked_for(planted: Path, expunge: Run) -> None:
    """And the command says so; what is scored from them is clean again."""
    result = expunge(*EVALUATE, "--output", "r.json", "--keep-predictions", "kept")

    assert result.code == 0, result.err
    assert "they hold texts of the forget set" in result.out
    kept = b"".join(path.read_bytes() for path in (planted / "kept").iterdir())
    assert PLANTED[2].encode() in kept
    assert all(path.stat().st_mode & 0o077 == 0 for path in [planted / "kept", *(planted / "kept").iterdir()])
    scored = expunge("score", "--predictions", "kept", "--output", "s.json")
    assert scored.code == 0, scored.err
    for path in (planted / "kept").iterdir():
        path.unlink()
    nothing_leaked(planted, scored)


def test_a_run_that_fails(planted: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("expunge.train.trainer")
    terms = module.loss_terms

    def poisoned(*given: object) -> dict[str, torch.Tensor]:
        poisoned.calls += 1
        return {name: term * (float("nan") if poisoned.calls == 3 else 1) for name, term in terms(*given).items()}

    poisoned.calls = 0
    monkeypatch.setattr(module, "loss_terms", poisoned)

    result = expunge(*TRAIN)

    assert result.code == 2
    assert "is not finite" in result.err
    nothing_leaked(planted, result)


def test_a_bug_shows_no_text(planted: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        import_module("expunge.train.trainer"), "add_adapter", lambda *given, **named: {}["add_adapter"]
    )

    result = expunge(*TRAIN)

    assert result.code == 1
    assert "this is a bug" in result.err
    nothing_leaked(planted, result)


def test_a_run_that_is_killed(planted: Path) -> None:
    """SIGKILL leaves checkpoints, which hold the adapter and nothing of texts."""
    (end,) = launch(1, planted, *TRAIN, "--recipe", "default", "--eval-every", "0", prepare="last_is_killed")

    assert end.code == -9, end
    assert list(Path("run/checkpoints").iterdir())
    assert json.loads(Path("run/manifest.json").read_text())["status"] == "running"
    nothing_leaked(planted, end)
