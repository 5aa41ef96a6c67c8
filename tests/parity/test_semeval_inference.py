"""Generations, losses and scores of two small models equal what the organisers' script computed."""

import json
from pathlib import Path

import pytest

from expunge.data.examples import Example
from expunge.data.lume import LumeData
from expunge.data.tokenize import PromptFormat
from expunge.evaluation.benchmarks import semeval
from expunge.evaluation.benchmarks.official_score import score
from expunge.evaluation.passes import Options, measure
from expunge.evaluation.predictions import organisers_kind
from expunge.model.load import LoadedModel, load_model
from expunge.model.logps import sequence_logps

NLL_TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict:
    return json.loads((shared / "golden/metrics/semeval_inference.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def texts(shared: Path) -> dict:
    return json.loads((shared / "golden/metrics/data.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=["fitted", "random"])
def subject(request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A stored model beside its tokenizer, as the loader wants them."""
    folder = tmp_path_factory.mktemp(request.param)
    for source in (shared / "golden/models" / request.param, shared / "golden/models/tokenizer"):
        for file in source.iterdir():
            (folder / file.name).symlink_to(file)
    return request.param, load_model(str(folder), dtype="float32", device="cpu")


def examples(rows: list[dict]) -> list[Example]:
    return [Example(row["id"], row["input"], row["output"], row["task"], organisers_kind(row["id"])) for row in rows]


def documents(rows: list[dict]) -> list[Example]:
    return [Example(row["id"], "", row["document"]) for row in rows]


def test_texts_losses_and_scores(subject: tuple[str, LoadedModel], golden: dict, texts: dict) -> None:
    name, loaded = subject
    want = golden[name]
    data = LumeData(
        forget=examples(texts["semeval"]["forget"]),
        retain=examples(texts["semeval"]["retain"]),
        member=documents(texts["semeval_mia"]["member"]),
        nonmember=documents(texts["semeval_mia"]["nonmember"]),
    )
    suite = semeval.suite_of(data)
    options = Options(golden["settings"]["max_new_tokens"], attacks=("loss",))
    measurement = measure(loaded, suite, PromptFormat("none", end_of_text=False), options)
    predictions = semeval.predictions_of(measurement, suite)
    measurement.mmlu = golden["settings"]["mmlu_average"]
    scores = score(measurement, suite)
    for split in ("forget", "retain"):
        got = [(row.id, row.task, row.model_output) for row in getattr(predictions, split)]
        assert got == [(row["id"], row["task"], row["model_output"]) for row in want[split]]
    for side in ("member", "nonmember"):
        losses = [row["nll"] for row in want[side]]
        assert predictions.losses[side] == pytest.approx(losses, abs=NLL_TOLERANCE)
    results = want.get("intended_results_text_kept_as_written", want["results"])
    assert scores.terms == pytest.approx(results["aggregated-terms"], abs=1e-12)
    assert scores.task_aggregate == pytest.approx(results["harmonic-mean-task-aggregate"], abs=1e-12)
    assert scores.mia_auc == pytest.approx(results["mia_loss_acc"], abs=1e-12)
    assert scores.final_score == pytest.approx(results["aggregate-score"], abs=1e-12)


def test_losses_of_completions(subject: tuple[str, LoadedModel], golden: dict) -> None:
    name, loaded = subject
    for split in ("forget", "retain"):
        rows = golden["tokenised"][split]
        logps = sequence_logps(loaded, [row["joint_ids"] for row in rows])
        # The organisers mask as many joint tokens as the prompt has by itself, in the middle of a word or not.
        losses = [-values[len(row["prompt_ids"]) - 1 :].mean().item() for values, row in zip(logps, rows, strict=True)]
        assert losses == pytest.approx([row["nll"] for row in golden[name][split]], abs=NLL_TOLERANCE)
