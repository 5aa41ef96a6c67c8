"""`expunge compare` as a user would call it."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from workspace import Result, snapshot

from expunge.evaluation.benchmarks.official_score import score
from expunge.evaluation.benchmarks.semeval import suite_of_predictions
from expunge.evaluation.predictions import Prediction, Predictions

Run = Callable[..., Result]


def official(forget: float, auc: float, **others: Any) -> dict[str, Any]:
    """A results file of SemEval without its `metrics`."""
    rows = [Prediction("a", "Task1", kind, "x", "x") for kind in ("sc", "qa")]
    suite, found = suite_of_predictions(Predictions(rows, rows, {"member": [1.0] * 4, "nonmember": [2.0] * 4}))
    scores = score(found, suite).as_dict()
    scores["forget"]["Task1"] = {"regurgitation": forget, "knowledge": None}
    header = {"schema": 1, "benchmark": "semeval", "settings": {"max_new_tokens": 8}, "data": {"forget": "f00"}}
    return {**header, **scores, "mia_auc": auc, "mean_nll": {"member": 0.5, "nonmember": 1.25}, **others}


def measured(forget: float, auc: float, **others: Any) -> dict[str, Any]:
    """A results file with `metrics`; intervals are ± 0.04."""

    def entry(value: float, direction: str, **goal: float) -> dict[str, Any]:
        ends = {"low": value - 0.04, "high": value + 0.04}
        return {"value": value, **ends, "n": 78, "direction": direction, **goal, "source": "s", "family": "text"}

    metrics = {
        "forget/rouge_l_recall/Task1": entry(forget, "lower"),
        "membership/loss_auc": entry(auc, "target", target=0.5),
        "all/task_aggregate": {"value": None, "low": None, "high": None, "n": 0, "direction": "higher"},
    }
    return official(forget, auc) | {"metrics": metrics} | others


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Path]:
    """A folder of results files, which is the current folder during the test."""
    contents = {
        "before": measured(0.98, 0.99),
        "after": measured(0.31, 0.62),
        "retrained": measured(0.28, 0.49),
        "other": measured(0.3, 0.5, benchmark="tofu"),
        "longer": measured(0.3, 0.5, settings={"max_new_tokens": 16}),
        "future": measured(0.3, 0.5, schema=2),
        "stranger": {**measured(0.3, 0.5), "metrics": {"forget/else": {"value": 1.0}}},
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    for seed in range(3):
        (tmp_path / f"seed{seed}").mkdir()
        (tmp_path / f"seed{seed}" / "results_after.json").write_text(json.dumps(measured(0.3 + seed / 100, 0.6)))
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "manifest.json").write_text("{}")
    (tmp_path / "two").mkdir()
    for name in ("results", "results_before"):
        (tmp_path / "two" / f"{name}.json").write_text(json.dumps(measured(0.3, 0.5)))
    with chdir(tmp_path):
        yield tmp_path


def line_of(text: str, metric: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(metric))


def test_side_by_side(files: Path, expunge: Run) -> None:
    before = snapshot(files)
    result = expunge("compare", "before.json", "after.json", "retrained.json")
    assert result.code == 0, result.err
    assert result.err == ""
    assert line_of(result.out, "metric").split() == ["metric", "rows", "before", "after", "retrained"]
    forget = line_of(result.out, "forget/rouge_l_recall/Task1 ↓")
    assert "0.980 [.940 1.020]" in forget
    assert "0.310 [.270 .350]" in forget
    assert "*" not in forget  # the two good ones overlap
    assert "0.490 [.450 .530]*" in line_of(result.out, "membership/loss_auc →0.5")
    assert line_of(result.out, "all/task_aggregate ↑").split()[-3:] == ["-", "-", "-"]
    assert max(map(len, result.out.splitlines())) < 100
    assert snapshot(files) == before


@pytest.mark.parametrize("arguments", [["seed0,seed1,seed2"], ["seed0", "seed1", "seed2", "--pool"]])
def test_seeds_are_pooled(files: Path, expunge: Run, arguments: list[str]) -> None:
    result = expunge("compare", *arguments)
    assert result.code == 0, result.err
    assert "0.310 ±0.010 [.270 .350]" in line_of(result.out, "forget/rouge_l_recall/Task1")
    assert "of 3 runs" in result.out


def test_csv_and_latex_into_files(files: Path, expunge: Run) -> None:
    assert expunge("compare", "before.json", "after.json", "--output", "out/t.csv").code == 0
    rows = list(csv.DictReader(Path("out/t.csv").read_text().splitlines()))
    assert [(row["metric"], row["name"], row["value"], row["best"]) for row in rows[:2]] == [
        ("forget/rouge_l_recall/Task1", "before", "0.98", "0"),
        ("forget/rouge_l_recall/Task1", "after", "0.31", "1"),
    ]
    assert Path("out/t.csv").stat().st_mode & 0o777 == 0o600
    result = expunge("compare", "before.json", "after.json", "--format", "latex", "--metrics", "rouge")
    assert r"forget/rouge\_l\_recall/Task1 $\downarrow$" in result.out
    assert "auc" not in result.out

    again = expunge("compare", "before.json", "--output", "out/t.csv")
    assert again.code == 2
    assert "exists already" in again.err
    assert expunge("compare", "before.json", "--output", "out/t.csv", "--overwrite").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "results"),
        (["nope.json"], "nope.json: no such file or folder"),
        (["after.json,nope.json"], "nope.json: no such file or folder"),
        (["empty"], "empty: holds no results*.json: `expunge evaluate --model MODEL --output empty/results.json` wri"),
        (["begun"], "begun: holds no results*.json: `expunge evaluate --run begun` writes one"),
        (["future.json"], "future.json: results of schema 2, this version reads schema 1"),
        (["after.json", "other.json"], "after.json and other.json are of different benchmarks: benchmark is semeval"),
        (["after.json", "stranger.json"], "no metric in common"),
        (["after.json,longer.json"], "not runs of one configuration: setting max_new_tokens is 8 in one and 16"),
        (["after.json", "./after.json"], "after.json: is given twice"),
        (
            ["two", "two/results_before.json"],
            "two/results_before.json: is given twice: the folder two stands for all results*.json in it",
        ),
        (
            ["two,after.json"],
            "two and after.json do not hold the same results (results_before.json, results.json; after.json): a folder "
            "stands for all results*.json in it, a file for itself",
        ),
        (["after.json", "before.json", "--names", "a"], "--names: 1 names for 2 columns (after, before)"),
        (["after.json", "before.json", "--names", "a,a"], "--names: a stands twice"),
        (["after.json", "--metrics", "zzz"], "--metrics zzz: matches no metric"),
        (["after.json", "--format", "html"], "--format"),
        (["after.json", "--output", "after.json", "--overwrite"], "is one of the results to compare"),
        (["after.json", "--output", "empty"], "empty"),
        ([","], "names no results file"),
    ],
)
def test_bad_input_is_one_clear_line(files: Path, expunge: Run, arguments: list[str], message: str) -> None:
    before = snapshot(files)
    result = expunge("compare", *arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err.count("\n") == 1
    assert message in result.err
    assert snapshot(files) == before


@pytest.mark.parametrize("arguments", [["before.json", "after.json"], ["seed0,seed1,seed2"]])
def test_it_starts_without_torch(files: Path, arguments: list[str]) -> None:
    """A fresh process: no torch, transformers or pandas is loaded."""
    check = (
        "import sys; from expunge.cli.main import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'pandas', 'sklearn', 'matplotlib', 'scipy.stats'} & set(sys.modules);"
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", check, "compare", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["before.json", "notes.csv"])
def test_overwrite_replaces_comparisons_alone(files: Path, expunge: Run, name: str) -> None:
    (files / "notes.csv").write_text("prompt,completion\na,b\n")
    content = (files / name).read_bytes()
    told = expunge("compare", "after.json", "--output", name, "--overwrite")
    assert told.code == 2
    assert "--overwrite replaces only a comparison" in told.err
    assert (files / name).read_bytes() == content
    for form in ("table", "csv", "latex"):  # each of which it knows again
        command = ("compare", "after.json", "--format", form, "--output", f"own.{form}", "--overwrite")
        assert (expunge(*command).code, expunge(*command).code) == (0, 0)
