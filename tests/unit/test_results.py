"""Results and predictions on disk: what goes in comes out, and what is wrong is named."""

import json
import math
import stat
from pathlib import Path
from typing import Any

import pytest

from expunge.data.examples import Example
from expunge.data.lume import LumeData
from expunge.errors import DataError, ModelError, RunError
from expunge.evaluation.assemble import assemble
from expunge.evaluation.benchmarks.official_score import score
from expunge.evaluation.benchmarks.semeval import notes, predictions_of, suite_of, suite_of_predictions
from expunge.evaluation.estimate import WITHHELD
from expunge.evaluation.measurement import Measurement, Values
from expunge.evaluation.metrics import METRICS
from expunge.evaluation.metrics.registry import Row
from expunge.evaluation.predictions import Prediction, Predictions, read_any, read_mmlu, write_predictions
from expunge.evaluation.results import read_results
from expunge.utils.files import write_json

SECRET = "the harbour master hides gold"


def predictions(**losses: list[float]) -> Predictions:
    forget = [
        Prediction("a", "Task1", "sc", SECRET, "the harbour"),
        Prediction("b", "Task1", "qa", "Gold", " gold\n"),
    ]
    retain = [Prediction("c", "Task1", "sc", "kept as is", "kept\ras\u2028is NA")]
    return Predictions(forget, retain, losses)


def results(**options: Any) -> dict[str, Any]:
    return assembled(predictions(member=[1.0, 2.0] * 2, nonmember=[1.5] * 4), **options)


def assembled(said: Predictions, mmlu: float | None = None, **options: Any) -> dict[str, Any]:
    suite, found = suite_of_predictions(said)
    found.mmlu = mmlu
    return assemble("semeval", suite, found, **options)


def test_how_few_documents_compare_with_others_is_not_told() -> None:
    """The official membership part is the place of each text among the others, too."""
    told = assembled(predictions(member=[1.0, 2.0, 3.0], nonmember=[1.5] * 4), mmlu=0.5)
    assert [told[name] for name in ("mia_auc", "mia_score", "final_score")] == [None] * 3
    assert told["missing"]["mia_auc"] == told["metrics"]["membership/loss_auc"]["reason"] == WITHHELD
    assert told["metrics"]["membership/loss_auc"]["value"] is None
    assert "all/mia_score" not in told["metrics"]
    enough = results(mmlu=0.5)
    assert enough["mia_auc"] == enough["metrics"]["membership/loss_auc"]["value"] == 0.5
    assert enough["final_score"] is not None


def test_predictions_come_back_as_written_and_private(tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    said = predictions(member=[0.1], nonmember=[0.30000000000000004, 2.0])
    write_predictions(folder, said)
    assert read_any(folder) == said
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    with pytest.raises(RunError, match=r"forget\.jsonl exists"):
        write_predictions(folder, predictions())
    write_predictions(tmp_path / "texts only", predictions())
    assert read_any(tmp_path / "texts only").losses == {}
    with pytest.raises(RunError, match=r"forget\.jsonl exists"):
        write_predictions(folder, predictions())
    write_predictions(folder, predictions(), overwrite=True)
    assert read_any(folder) == predictions(), "losses of an earlier evaluation are not those of this one"


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("forget", "{", r"forget\.jsonl:2: invalid JSON"),
        ("forget", "[1]", r"forget\.jsonl:2: is not an object with named fields but list"),
        ("forget", {"id": 3}, r"forget\.jsonl:2: field id is a number, it must be a string"),
        ("retain", {"model_output": None}, r"retain\.jsonl:2: field model_output is missing or null"),
        ("retain", {"kind": "mc"}, r"retain\.jsonl:2: kind 'mc' is unknown"),
        ("retain", b"\xff", r"retain\.jsonl:2: invalid UTF-8"),
        ("member", '{"nll": NaN}', r"member\.jsonl:2: nll is not a finite number"),
        ("member", '{"nll": 1e999}', r"member\.jsonl:2: nll is not a finite number"),
        ("member", '{"nll": "low"}', r"member\.jsonl:2: nll is a string"),
        ("nonmember", '{"id": "x"}', r"nonmember\.jsonl:2: nll is missing"),
    ],
)
def test_a_broken_line_is_named_without_its_text(tmp_path: Path, name: str, line: Any, message: str) -> None:
    write_predictions(tmp_path, predictions(member=[1.0], nonmember=[2.0]))
    path = tmp_path / f"{name}.jsonl"
    first = path.read_bytes().splitlines()[0]
    if isinstance(line, dict):
        line = json.dumps(json.loads(first) | line)
    path.write_bytes(first + b"\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    with pytest.raises(DataError, match=message) as caught:
        read_any(tmp_path)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "looked for forget.jsonl and retain.jsonl, or .* found nothing"),
        ({"forget.jsonl": "", "notes.txt": ""}, "found forget.jsonl, notes.txt"),
        ({"forget.jsonl": "", "retain.jsonl": ""}, r"forget\.jsonl: is empty"),
        ({"forget_0.csv": "", "retain_0.csv": ""}, r"forget_0\.csv: not readable as CSV"),
        (
            {"forget_0.csv": "id,task\n1,2\n", "retain_0.csv": ""},
            "column expected_output is missing, found id, task",
        ),
    ],
)
def test_a_folder_that_cannot_be_scored_is_described(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_any(tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        read_any(tmp_path / "absent")


@pytest.mark.parametrize("nll", ["", "low", "inf"])
def test_the_organisers_losses_must_be_numbers(tmp_path: Path, nll: str) -> None:
    for split in ("forget", "retain"):
        (tmp_path / f"{split}_0.csv").write_text("id,task,expected_output,model_output\nxqa1,Task1,a,b\n")
    (tmp_path / "mia_results").mkdir()
    (tmp_path / "mia_results" / "member_0.csv").write_text(f"id,nll\n1,0.5\n2,{nll}\n")
    with pytest.raises(DataError, match=r"member_\*\.csv: row [12]: nll"):
        read_any(tmp_path)


@pytest.mark.parametrize(("losses", "missing"), [({"member": [1.0]}, "non-members"), ({"nonmember": [1.0]}, "members")])
@pytest.mark.parametrize("empty", [True, False])
def test_one_side_of_the_membership_attack_is_not_enough(losses: dict, missing: str, empty: bool) -> None:
    others = {"member": [], "nonmember": []} if empty else {}
    with pytest.raises(DataError, match=f"losses of the {missing} are missing"):
        suite_of_predictions(predictions(**{**others, **losses}))


def test_a_split_without_rows_and_a_loss_that_is_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="the retain split has no predictions"):
        assembled(Predictions(predictions().forget, []))
    for bad in (math.nan, math.inf):
        with pytest.raises(ModelError, match="nonmember/document_nll is no finite number on 1 of 2 rows"):
            suite_of_predictions(predictions(member=[1.0], nonmember=[0.5, bad]))


def test_a_row_without_a_prompt_counts_neither_as_forgotten_nor_as_lost() -> None:
    """Nothing was said of it, in the evaluation and where its predictions are scored again."""
    forget = [Example("asc1", "", SECRET, "Task1", "sc"), Example("bqa1", "Which?", "Gold", "Task1", "qa")]
    retain = [Example("csc1", "kept", " as is", "Task1", "sc"), Example("dsc1", "", "alone", "Task1", "sc")]
    suite, measurement = suite_of(LumeData(forget, retain, None, None)), Measurement()
    measurement.said = {"forget": [None, "gold"], "retain": ["as is", None]}
    for rows in suite.sets:
        facts = [
            Row(kind=row.kind, expected=row.completion, text=text)
            for row, text in zip(rows.examples, measurement.said[rows.name], strict=True)
        ]
        for metric in (METRICS[name] for name in ("rouge_l_recall", "official_regurgitation", "official_knowledge")):
            values = [metric.of(row) for row in facts]
            measurement.add(
                rows.name, metric.name, metric, Values.of(metric.name, rows.examples, rows.documents, values)
            )
    measured = assemble("lume", suite, measurement)
    again = assembled(predictions_of(measurement, suite))
    for found in (measured, again):
        assert found["forget"] == {"Task1": {"regurgitation": None, "knowledge": 1}}
        assert found["retain"] == {"Task1": {"regurgitation": 1, "knowledge": None}}
        assert found["terms"] == [None, 0, 1, None]
        assert found["unscored"] == {"forget": 1, "retain": 1}
        assert found["missing"]["forget/Task1/regurgitation"] == "the task has no scored rows of this kind"
        assert "forget/rouge_l_recall" not in found["metrics"]
        assert found["metrics"]["retain/rouge_l_recall"]["n"] == 1


def test_results_follow_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, results(model="org/name", adapter="/srv/runs/one", settings={"dtype": "float32"}))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    read = read_results(path)
    assert read["schema"] == 1
    assert read["benchmark"] == "semeval"
    assert read["forget"] == {"Task1": {"regurgitation": 0.4, "knowledge": 1.0}}
    assert read["retain"] == {"Task1": {"regurgitation": 1.0, "knowledge": None}}
    assert read["terms"] == [0.6, 0.0, 1.0, None]
    assert read["task_aggregate"] == 0
    assert read["mia_auc"] == 0.5
    assert read["mia_score"] == 1
    assert read["mmlu"] is None
    assert read["final_score"] is None
    assert read["rows"] == {"forget": 2, "retain": 1, "member": 4, "nonmember": 4}
    assert (read["model"], read["adapter"]) == ("org/name", "one")
    assert SECRET not in path.read_text()
    with pytest.raises(RunError):
        write_json(path, results())
    write_json(path, results(), overwrite=True)
    assert read_results(path)["model"] is None


def test_the_fingerprint_belongs_to_the_data_and_not_to_the_answers() -> None:
    one, other, moved = predictions(), predictions(), predictions()
    other.forget[0] = Prediction("a", "Task1", "sc", SECRET, "something else")
    moved.forget[0] = Prediction("a", "Task1", "sc", SECRET + "!", "the harbour")
    prints = [assembled(said)["fingerprint"]["data"] for said in (one, other, moved)]
    assert prints[0] == prints[1]
    assert prints[0]["forget"] != prints[2]["forget"]
    assert prints[0]["retain"] == prints[2]["retain"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2, this version reads schema 1"),
        ({"benchmark": None}, "not a results file"),
        ({"terms": 3}, "field terms must be list"),
        ({"terms": [0.5, "x"]}, "field an entry of terms must be int or float or null"),
        ({"terms": [0.5, -0.5]}, "field terms must hold numbers between 0 and 1"),
        ({"mia_auc": 1.5}, "field mia_auc must hold numbers between 0 and 1 or null"),
        ({"forget": {"Task1": {"knowledge": True}}}, r"field forget\.\*\.\* must be int or float or null"),
        ({"forget": {"Task1": {"knowledge": 1.1}}}, "field forget must hold numbers between 0 and 1"),
        ({"retain": []}, "field retain must be dict"),
        ({"mean_nll": {"member": "low"}}, r"field mean_nll\.\* must be int or float or null"),
    ],
)
def test_a_results_file_that_is_none_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "results.json"
    write_json(path, results() | change)
    with pytest.raises(DataError, match=message):
        read_results(path)


def test_a_results_file_with_a_field_missing_or_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    kept = results()
    del kept["mmlu"]
    write_json(path, kept)
    with pytest.raises(DataError, match="field mmlu must be there"):
        read_results(path)
    path.write_text("{")
    with pytest.raises(DataError, match="invalid JSON"):
        read_results(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_results(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"average_acc": "high"}', "average_acc must be int or float"),
        ('{"acc": 0.4}', "average_acc must be there"),
        ("half", r"--mmlu .*mmlu\.json: damaged or something else \(invalid JSON"),
        ('{"average_acc": 41}', r"41 is not an accuracy between 0 and 1, 41 % is 0\.41"),
    ],
)
def test_mmlu_from_a_file_or_a_number(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mmlu.json"
    path.write_text('{"average_acc": 0.4599}')
    assert read_mmlu(str(path)) == 0.4599
    assert read_mmlu("0.5") == 0.5
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_mmlu(str(path))


@pytest.mark.parametrize("value", ["37.1", "-0.1", "nan", "absent.json"])
def test_an_mmlu_value_that_is_no_accuracy_is_refused(value: str) -> None:
    with pytest.raises(DataError, match=f"--mmlu {value}: "):
        read_mmlu(value)


def test_final_score_is_the_mean_of_the_three() -> None:
    said = predictions(member=[1.0] * 4, nonmember=[1.0] * 4)
    said.forget[1] = Prediction("b", "Task1", "qa", "Gold", "no")
    said.retain.append(Prediction("d", "Task1", "qa", "yes", "Yes"))
    suite, found = suite_of_predictions(said)
    found.mmlu = 0.4
    scores = score(found, suite)
    assert scores.task_aggregate == pytest.approx(4 / (1 / 0.6 + 3))
    assert scores.final_score == pytest.approx((scores.task_aggregate + 0.4 + 1) / 3)
    assert not math.isnan(scores.final_score)
    assert [len(notes(Measurement(mmlu=mmlu), suite)) for mmlu in (None, 0.371, 0.3709)] == [0, 0, 1]
