"""`expunge demo` from end to end, with a small subject in the place of the bundled one."""

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from workspace import Result, write_jsonl

from expunge.config import UnlearnConfig
from expunge.demo import run
from taught import made_up, teach

Run = Callable[..., Result]
SMALL = {"max_steps": 48, "tokens_per_step": 384, "learning_rate": 5e-3, "device": "cpu", "dtype": "float32"}
"""Settings of the demo's run for a subject that is this small."""


def write_data(assets: Path, rng: random.Random) -> dict[str, list[dict[str, str]]]:
    """Data laid out as the bundled ones are; gives the rows of each set."""
    sets: dict[str, list[dict[str, str]]] = {}
    for name, count in (("forget", 8), ("retain", 8), ("holdout", 16)):
        sets[name] = [
            {"id": f"{name}{number}{kind}", "input": row["prompt"], "output": row["completion"], "task": "Task1"}
            for kind in ("sc1", "qa0")
            for number, row in enumerate(made_up(count, rng))
        ]
    sets["quiz"] = [row | {"id": f"quiz{at}qa0"} for at, row in enumerate(sets["retain"][:4])]
    (assets / "data").mkdir(parents=True)
    for name, rows in sets.items():
        write_jsonl(assets / "data" / f"{name}.jsonl", rows)
    for name, side in (("member", "forget"), ("nonmember", "holdout")):
        texts = [row for row in sets[side] if row["id"].endswith("sc1")][:8]
        write_jsonl(
            assets / "data" / f"{name}.jsonl",
            [{"id": row["id"], "document": f"{row['input']} {row['output']}"} for row in texts],
        )
    return sets


def write_assets(assets: Path, rng: random.Random) -> None:
    """A subject, its retrained model and their data."""
    sets = write_data(assets, rng)
    for name, known in (("subject", ("forget", "retain")), ("retrained", ("retain",))):
        rows = [{"prompt": row["input"], "completion": row["output"]} for side in known for row in sets[side]]
        teach(assets / name, rows, rng)


def test_the_demo_forgets_keeps_and_shows_it(tmp_path: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_assets(tmp_path / "package" / "assets", random.Random(0))
    monkeypatch.setattr(run, "files", lambda package: tmp_path / "package")
    monkeypatch.setattr(run, "SETTINGS", SMALL)
    monkeypatch.chdir(tmp_path)
    done = expunge("demo", "--output", "demo")
    assert done.code == 0, done.err
    results = {
        name: json.loads(Path(f"demo/results_{name}.json").read_text()) for name in ("before", "after", "retrained")
    }
    before, after, _ = (result["metrics"] for result in results.values())
    assert before["forget/rouge_l_recall"]["value"] > 0.9, "known by heart"
    assert after["forget/rouge_l_recall"]["value"] < 0.3
    assert after["forget/exact_match"]["value"] == 0
    assert after["retain/rouge_l_recall"]["value"] > 0.9
    assert results["after"]["quiz"] == 1
    loss = json.loads(Path("demo/manifest.json").read_text())["loss_nats_per_completion_token"]
    assert loss["forget"]["after"] > 8 * loss["forget"]["before"]
    assert loss["retain"]["after"] < loss["retain"]["before"] + 0.1
    assert 0.75 < loss["forget"]["after"] / loss["holdout"]["before"] < 1.4, "as unlikely as what was never seen"
    assert results["retrained"]["task_aggregate"] > 0.9
    assert results["after"]["task_aggregate"] > 0.9 > 0.2 > results["before"]["task_aggregate"]
    for shown in ("before", "after", "retrained", "(to forget)", "(to keep)", "report    demo/report.html"):
        assert shown in done.out
    assert Path("demo/report.html").stat().st_size

    adapter = Path("demo/adapter/adapter_model.safetensors").read_bytes()
    Path("demo/results_after.json").unlink()  # as where it was interrupted while it scored
    again = expunge("demo", "--output", "demo", "--resume")
    assert again.code == 0, again.err
    assert Path("demo/adapter/adapter_model.safetensors").read_bytes() == adapter
    assert json.loads(Path("demo/results_after.json").read_text())["metrics"] == results["after"]["metrics"]


@pytest.fixture
def language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small model that has never met the people, in the place of a real one, and settings for its size."""
    rng = random.Random(0)
    write_data(tmp_path / "package" / "assets", rng)
    teach(tmp_path / "base", made_up(40, rng), rng, steps=20)
    monkeypatch.setattr(run, "files", lambda package: tmp_path / "package")
    monkeypatch.setattr(run, "UnlearnConfig", partial(UnlearnConfig, **SMALL))
    monkeypatch.setattr("expunge.demo.teach.PASSES", 60)
    monkeypatch.setattr("expunge.demo.teach.RATE", 4e-3)
    monkeypatch.chdir(tmp_path)
    return "base"


def test_a_language_model_learns_the_people_first(language_model: str, expunge: Run) -> None:
    done = expunge("demo", "--model", language_model, "--output", "demo")
    assert done.code == 0, done.err
    before, after, retrained = (
        json.loads(Path(f"demo/results_{name}.json").read_text())["metrics"] for name in run.NAMES
    )
    assert before["forget/rouge_l_recall"]["value"] > 0.9 > 0.3 > after["forget/rouge_l_recall"]["value"]
    assert min(metrics["retain/rouge_l_recall"]["value"] for metrics in (before, after, retrained)) > 0.9
    assert retrained["forget/rouge_l_recall"]["value"] < 0.3, "it has never met those to forget"
    taught = {
        name: Path(f"demo-models/{name}/model.safetensors").stat().st_mtime_ns for name in ("subject", "retrained")
    }

    again = expunge("demo", "--model", language_model, "--output", "demo", "--overwrite", "--seed", "1")
    assert again.code == 0, again.err
    assert "kept: demo-models/subject" in again.err
    assert taught == {name: Path(f"demo-models/{name}/model.safetensors").stat().st_mtime_ns for name in taught}


def test_what_lies_where_the_models_go_is_not_touched(language_model: str, expunge: Run) -> None:
    Path("demo-models/subject").mkdir(parents=True)
    Path("demo-models/subject/thesis.txt").write_text("years of work")
    done = expunge("demo", "--model", language_model, "--output", "demo")
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert "demo-models/subject: was made of something else" in done.err
    assert Path("demo-models/subject/thesis.txt").read_text() == "years of work"
    assert not Path("demo").exists()


def test_a_model_that_does_not_learn_the_people_is_told(
    language_model: str, expunge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("expunge.demo.teach.PASSES", 1)
    done = expunge("demo", "--model", language_model, "--output", "demo")
    assert done.code == 2, done.err
    assert "does not know the texts by heart after 1 passes" in done.err
    assert list(Path("demo-models").iterdir()) == [], "nothing half done is left"


@pytest.mark.parametrize("model", ["nowhere/at/all", "package"])
def test_what_is_no_model_is_refused_before_anything_is_written(language_model: str, expunge: Run, model: str) -> None:
    done = expunge("demo", "--model", model, "--output", "demo")
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert f"--model {model}" in done.err
    assert not Path("demo").exists()
    assert not Path("demo-models").exists()
