"""`expunge demo` from end to end, with a small subject in the place of the bundled one."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from workspace import Result, write_jsonl

from expunge.demo import run
from taught import made_up, teach

Run = Callable[..., Result]
SMALL = {"max_steps": 48, "tokens_per_step": 384, "learning_rate": 5e-3, "device": "cpu", "dtype": "float32"}
"""Settings of the demo's run for a subject that is this small."""


def write_assets(assets: Path, rng: random.Random) -> None:
    """A subject, its retrained model and their data, laid out as the bundled ones are."""
    sets = {}
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
    for name, known in (("subject", ("forget", "retain")), ("retrained", ("retain",))):
        rows = [{"prompt": row["input"], "completion": row["output"]} for own in known for row in sets[own]]
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
    before, after, _ = (own["metrics"] for own in results.values())
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
