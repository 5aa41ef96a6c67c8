"""Scoring through the command line: a model, an adapter, stored predictions, the organisers' files."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from workspace import FORGET, MARKER, QUICK, RETAIN, UNLEARN, Result, snapshot, write_jsonl

Run = Callable[..., Result]
EVALUATE = ("evaluate", "--model", "model", "--benchmark", "semeval", "--data", "data", "--max-new-tokens", "8")


@pytest.fixture
def data(work: Path) -> Path:
    """A plain benchmark folder: completions and questions of two tasks on both sides, and membership documents."""
    folder = work / "data"
    folder.mkdir()
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        kinds = [("Task1", "sc1"), ("Task1", "qa0"), ("Task2", "sc1"), ("Task2", "qa0")]
        rows = [{**row, "id": row["id"] + kind, "task": task} for row, (task, kind) in zip(rows, kinds, strict=False)]
        write_jsonl(folder / f"{name}.jsonl", rows)
    write_jsonl(folder / "member.jsonl", [{"id": "m", "document": row["input"] + row["output"]} for row in FORGET])
    write_jsonl(folder / "nonmember.jsonl", [{"id": "n", "document": row["input"]} for row in RETAIN])
    return folder


def test_model_then_adapter_then_stored_predictions(work: Path, data: Path, expunge: Run) -> None:
    assert expunge(*UNLEARN, *QUICK).code == 0
    result = expunge(
        *EVALUATE, "--adapter", "run", "--output", "out/r.json", "--keep-predictions", "out/p", "--mmlu", ".5"
    )
    assert result.code == 0, result.err
    results = json.loads(Path("out/r.json").read_text())

    assert results["schema"] == 1
    assert results["benchmark"] == "semeval"
    assert set(results["forget"]) == set(results["retain"]) == {"Task1", "Task2"}
    assert len(results["terms"]) == 8
    assert 0 <= results["mia_auc"] <= 1
    assert results["mia_score"] == pytest.approx(1 - 2 * abs(results["mia_auc"] - 0.5))
    mean = (results["task_aggregate"] + results["mia_score"] + 0.5) / 3
    assert results["final_score"] == pytest.approx(mean)
    assert "task aggregate" in result.out
    assert MARKER not in Path("out/r.json").read_text()
    for path in Path("out").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)

    again = expunge("score", "--benchmark", "semeval", "--predictions", "out/p", "--output", "s.json", "--mmlu", "0.5")
    assert again.code == 0, again.err
    stored = json.loads(Path("s.json").read_text())
    for name in ("forget", "retain", "terms", "task_aggregate", "mia_auc", "mia_score", "mmlu", "final_score"):
        assert stored[name] == results[name], name


def test_evaluate_scores_the_split_that_unlearn_forgot(work: Path, data: Path, expunge: Run) -> None:
    (data / "data").mkdir()
    for split in ("train", "validation"):
        for side in ("forget", "retain"):
            rows = [json.loads(line) for line in (data / f"{side}.jsonl").read_text().splitlines()]
            pq.write_table(pa.Table.from_pylist(rows), data / "data" / f"{side}_{split}-00000-of-00001.parquet")
    made = ("unlearn", "--model", "model", "--benchmark", "semeval", "--data", "data", *QUICK)
    assert expunge(*made, "--output", "run").code == 0
    assert expunge(*made, "--output", "other", "--split", "train").code == 0
    for run, split in (("run", "validation"), ("other", "train")):
        told = expunge(*EVALUATE, "--adapter", run, "--output", f"{split}.json")
        assert told.code == 0, told.err
        assert "forgotten" not in told.err
        assert json.loads(Path(f"{split}.json").read_text())["settings"]["split"] == split
    told = expunge(*EVALUATE, "--output", "untouched.json")
    assert json.loads(Path("untouched.json").read_text())["settings"]["split"] == "validation"
    told = " ".join(expunge(*EVALUATE, "--adapter", "other", "--split", "validation", "--output", "r.json").err.split())
    assert "the run has forgotten --split train of semeval, and --split validation is scored" in told
    for file in (data / "data").glob("*_train-*"):
        file.unlink()
    told = expunge(*EVALUATE, "--adapter", "other", "--split", "validation", "--output", "r.json", "--overwrite").err
    assert "--split train of semeval, which this data has not" in " ".join(told.split())


def test_unseen_texts_that_are_the_forgotten_ones_are_no_unseen_ones(work: Path, expunge: Run) -> None:
    """Every attack would find nothing, whatever the model knows."""
    files = ("--forget", "forget.jsonl", "--holdout", "forget.jsonl", "--max-new-tokens", "2", "--output", "r.json")
    told = expunge("evaluate", "--model", "model", "--benchmark", "custom", *files)
    assert told.code == 0, told.err
    results = json.loads(Path("r.json").read_text())
    assert not [name for name in results["metrics"] if name.startswith(("membership/", "holdout/"))]
    notes = " ".join(results["not_measured"])
    assert "4 of 4 unseen texts are" in notes
    assert "no membership attack was run" in notes


def test_another_base_and_few_texts_are_told(work: Path, expunge: Run) -> None:
    shutil.copytree("model", "other")
    settings = json.loads(Path("other/config.json").read_text())
    Path("other/config.json").write_text(json.dumps(settings | {"rms_norm_eps": 1e-3}))
    files = ("--benchmark", "custom", "--forget", "forget.jsonl", "--holdout", "retain.jsonl", "--max-new-tokens", "4")
    for model, warned in (("model", False), ("other", True)):
        told = expunge("evaluate", "--model", model, "--adapter", "done", *files, "--output", f"{model}.json")
        assert told.code == 0, told.err
        assert (
            "its weights or settings are not those that the run was made on" in " ".join(told.err.split())
        ) == warned
    notes = json.loads(Path("model.json").read_text())["not_measured"]
    assert any("rest on 4 texts of one side" in note for note in notes)


def test_nothing_but_results_and_row_values_is_written_without_asking(work: Path, data: Path, expunge: Run) -> None:
    before = snapshot(work)
    assert expunge(*EVALUATE, "--output", "r.json").code == 0
    assert set(snapshot(work)) - set(before) == {"r.json", "r.parquet"}


def test_results_are_replaced_only_on_request(work: Path, data: Path, expunge: Run) -> None:
    assert expunge(*EVALUATE, "--output", "r.json", "--keep-predictions", "p").code == 0
    assert expunge(*EVALUATE, "--output", "r.json").code == 2
    assert expunge(*EVALUATE, "--output", "r.json", "--keep-predictions", "p", "--overwrite").code == 0


def test_predictions_that_cannot_be_written_cost_no_results(
    work: Path, data: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("expunge.evaluation.run.write_predictions", full)
    assert expunge(*EVALUATE, "--output", "r.json", "--keep-predictions", "p").code == 2
    assert json.loads(Path("r.json").read_text())["metrics"]


def test_without_membership_documents_the_final_score_is_null(work: Path, data: Path, expunge: Run) -> None:
    (data / "member.jsonl").unlink()
    (data / "nonmember.jsonl").unlink()
    assert expunge(*EVALUATE, "--output", "r.json", "--mmlu", "0.4").code == 0
    results = json.loads(Path("r.json").read_text())
    assert results["mia_auc"] is None
    assert results["final_score"] is None


def test_the_organisers_files(work: Path, expunge: Run) -> None:
    """The hidden rule of their reader: a word such as NA is a missing value and is scored as the text `nan`."""
    folder = work / "theirs"
    (folder / "mia_results").mkdir(parents=True)
    header = ["id", "task", "input", "expected_output", "model_output", "nll"]
    for split in ("forget", "retain"):
        with open(folder / f"{split}_0.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(header)
            rows.writerow(["asc1", "Task1", "x", "the old mill", "the old well", 1.0])
            rows.writerow(["aqa0", "Task1", "x", "nan", "NA", 1.0])
    for side, losses in (("member", (1.0, 2.0) * 2), ("nonmember", (2.0, 3.0) * 2)):
        lines = "".join(f"{side}{i},{loss}\n" for i, loss in enumerate(losses))
        (folder / "mia_results" / f"{side}_0.csv").write_text("id,nll\n" + lines)
    assert expunge("score", "--predictions", "theirs", "--output", "r.json", "--mmlu", "0.3").code == 0
    results = json.loads(Path("r.json").read_text())
    assert any("MMLU is 0.3, below 0.371" in sentence for sentence in results["not_measured"])
    assert results["forget"]["Task1"] == {"regurgitation": pytest.approx(2 / 3), "knowledge": 1.0}
    assert results["mia_auc"] == pytest.approx(0.875)
    assert results["task_aggregate"] == 0.0
