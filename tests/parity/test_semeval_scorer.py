"""The scores equal the organisers' own script on every stored case, its quirks included."""

import csv
import json
import math
from pathlib import Path

import pytest

from expunge.data.words import words
from expunge.evaluation.benchmarks.official_score import SemevalScores, score
from expunge.evaluation.benchmarks.semeval import suite_of_predictions
from expunge.evaluation.metrics.generations import official_knowledge, official_regurgitation, rouge
from expunge.evaluation.predictions import (
    Prediction,
    Predictions,
    organisers_kind,
    read_any,
    read_mmlu,
    read_organisers,
    read_predictions,
    write_predictions,
)

CASES = [
    *(
        "c01_mixed",
        "c02_forgot_well",
        "c03_zero_term",
        "c04_multi_shard",
        "c05_edge_strings",
        "c06_numeric_shards",
    ),
    *("c07_missing_group", "c08_without_mia_mmlu", "c09_mia_ties", "c10_mia_separable", "c11_mia_reversed"),
    *("c12_id_endings", "c13_all_rows", "c14_carriage_return"),
]
TOLERANCE = 1e-12


def same(got: float | None, want: float | str | None) -> bool:
    if want is None or got is None:
        return want is None and got is None
    want = float(want)
    return math.isnan(got) if math.isnan(want) else abs(got - want) <= TOLERANCE


def check(scores: SemevalScores, expected: dict) -> None:
    for split in ("forget", "retain"):
        wanted = dict(expected[f"{split}-set"])
        for name, mean in scores.overall[split].items():
            assert same(mean, wanted.pop(f"overall-{name}-score")), (split, name)
        means = getattr(scores, split)
        assert list(means) == sorted(wanted)
        for task, values in wanted.items():
            for name, mean in means[task].items():
                assert same(mean, values[f"{name}-score"]), (split, task, name)
    assert len(scores.terms) == len(expected["aggregated-terms"])
    assert all(map(same, scores.terms, expected["aggregated-terms"]))
    assert same(scores.task_aggregate, expected["harmonic-mean-task-aggregate"])
    assert same(scores.mia_auc, expected.get("mia_loss_acc"))
    assert same(scores.mia_score, expected.get("mia_final_score"))
    assert same(scores.mmlu, expected.get("mmlu_average"))
    final = expected["aggregate-score"]
    assert same(scores.final_score, None if final == -1 else final)


def scored(folder: Path, predictions: Predictions) -> SemevalScores:
    suite, found = suite_of_predictions(predictions)
    found.mmlu = read_mmlu(str(folder / "mmlu.json")) if (folder / "mmlu.json").exists() else None
    return score(found, suite)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, shared: Path) -> tuple[Path, dict]:
    folder = shared / "golden" / "semeval_scorer" / request.param
    return folder, json.loads((folder / "expected.json").read_text(encoding="utf-8"))


def test_the_organisers_files_give_the_organisers_numbers(case: tuple[Path, dict]) -> None:
    folder, expected = case
    predictions = read_any(folder)
    check(scored(folder, predictions), expected["results"])
    for split in ("forget", "retain"):
        rows = getattr(predictions, split)
        for row, want in zip(rows, expected["per_row"][split], strict=True):
            assert row.id == want["id"]
            fields = row.model_output, row.expected_output, row.kind
            got = official_knowledge(*fields) if row.kind == "qa" else official_regurgitation(*fields)
            assert same(got, want["rougeL_recall"] if want["knowledge"] is None else want["knowledge"])
            if row.kind == "sc" and all(word.isascii() for text in fields[:2] for word in words(text)):
                ours = rouge(*fields[:2])  # of other words their scorer sees nothing
                assert same(ours["rouge_1_recall"], want["rouge1_recall"])
                assert same(ours["rouge_l_recall"], want["rougeL_recall"])
            assert row.model_output == want.get("text_scored", row.model_output)


def test_text_kept_as_written_gives_the_intended_numbers(case: tuple[Path, dict], tmp_path: Path) -> None:
    folder, expected = case
    theirs = read_organisers(folder)
    ours = {split: as_written(folder, split) for split in ("forget", "retain")}
    write_predictions(tmp_path, Predictions(**ours, losses=theirs.losses))
    predictions = read_predictions(tmp_path)
    assert {split: getattr(predictions, split) for split in ours} == ours
    check(scored(folder, predictions), expected.get("intended_results_text_kept_as_written", expected["results"]))


def as_written(folder: Path, split: str) -> list[Prediction]:
    """The generations before the CSV round trip, with the references read as plain text."""
    fields = []
    for path in sorted(folder.glob(f"{split}_*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            fields += csv.DictReader(file)
    remaining = iter(fields)
    predictions = []
    for line in (folder / f"{split}.generations.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        # A bare carriage return in the CSV leaves the tail of a generation as a row of its own: passed over
        # here.
        known = next(cells for cells in remaining if cells["id"] == row["id"])
        kind = organisers_kind(row["id"])
        predictions.append(Prediction(row["id"], known["task"], kind, known["expected_output"], row["model_output"]))
    return predictions


def test_an_id_with_a_two_digit_counter_is_scored_when_its_kind_is_known() -> None:
    def official(kind: str) -> SemevalScores:
        suite, found = suite_of_predictions(Predictions([Prediction("aqa12", "Task1", kind, "Yes", " yes")], kept))
        return score(found, suite)

    kept = [Prediction("aqa1", "Task1", "qa", "Yes", "no")]
    assert organisers_kind("aqa12") == ""
    assert official("").unscored == {"forget": 1, "retain": 0}
    assert math.isnan(official("").forget["Task1"]["knowledge"])
    assert official("qa").unscored == {"forget": 0, "retain": 0}
    assert official("qa").forget["Task1"]["knowledge"] == 1
