"""Utility tasks through lm-eval: a small task in MMLU's format, from a folder."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from benchmark_data import CUSTOM, SMALL
from workspace import Result, snapshot, write_jsonl

from expunge.errors import DataError
from expunge.evaluation.measurement import Values
from expunge.evaluation.utility import _values, mmlu_of
from expunge.evaluation.values_file import read_values_file

Run = Callable[..., Result]
TASK = """\
task: mmlu_village
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/test.jsonl, dev: {folder}/dev.jsonl}}
test_split: test
fewshot_split: dev
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\nA. {{{{choices[0]}}}}\\nB. {{{{choices[1]}}}}\\nAnswer:"
doc_to_choice: ["A", "B"]
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def task(here: Path) -> Path:
    """A folder with the task."""
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'expunge[lm-eval]'")
    folder = here / "tasks"
    folder.mkdir()
    rows = [{"question": f"Who lives at {i}?", "choices": ["Wren", "Oduya"], "answer": i % 2} for i in range(6)]
    write_jsonl(folder / "test.jsonl", rows)
    write_jsonl(folder / "dev.jsonl", rows[:1])
    (folder / "village.yaml").write_text(TASK.format(folder=folder))
    return folder


def test_a_local_task_feeds_the_final_score(here: Path, task: Path, expunge: Run) -> None:
    documents = [{"id": str(i), "document": f"Once upon a time, {i} ships"} for i in range(3)]
    folder = here / "official"
    folder.mkdir()
    for name in ("forget", "retain"):
        (folder / f"{name}.jsonl").write_bytes(Path(f"lume/{name}.jsonl").read_bytes())
        write_jsonl(folder / ("member.jsonl" if name == "forget" else "nonmember.jsonl"), documents)
    data = ("--benchmark", "lume", "--data", "official")
    result = expunge(*SMALL, *data, "--tasks", "mmlu_village", "--task-path", "tasks", "--limit", "5")
    assert result.code == 0, result.err
    results = json.loads(Path("r.json").read_text())
    metric = results["metrics"]["all/mmlu_village_acc"]
    values = read_values_file("r.parquet")["all", "mmlu_village_acc"]
    assert len(values.ids) == metric["n"] == 5
    assert metric["value"] == pytest.approx(sum(values.values) / 5)
    assert results["mmlu"] == metric["value"]
    assert results["final_score"] == pytest.approx(
        (results["task_aggregate"] + results["mia_score"] + metric["value"]) / 3
    )
    assert "it/s" not in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", "mmlu_village", "--task-path", "nowhere"), "--task-path nowhere: no such folder"),
        (("--tasks", ","), "--tasks is empty"),
    ],
)
def test_tasks_that_cannot_be_run(here: Path, task: Path, expunge: Run, arguments: tuple, message: str) -> None:
    before = set(snapshot(here))
    result = expunge(*SMALL, *CUSTOM, *arguments)
    assert result.code == 2
    assert message in result.err
    assert set(snapshot(here)) == before


def test_an_unknown_task_is_named(here: Path, task: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    known = SimpleNamespace(all_tasks=["mmlu_village"])  # reading lm-eval's own list takes 12 s
    monkeypatch.setattr(import_module("expunge.evaluation.utility"), "_manager", lambda tasks, path: known)
    result = expunge(*SMALL, *CUSTOM, "--tasks", "mmlu_village,astrology", "--task-path", "tasks")
    assert result.code == 2
    assert "lm-eval knows no astrology" in result.err
    assert not Path("r.json").exists()


def test_a_task_of_several_filters_and_metrics_is_read_by_one_of_each() -> None:
    twice = [
        {"doc_id": doc, "filter": way, "metrics": ["exact_match"], "exact_match": float(way == "flexible" or doc == 0)}
        for way in ("strict", "flexible") for doc in range(4)
    ]  # fmt: skip
    name, values = _values("gsm8k", ["gsm8k"], {"gsm8k": twice})
    assert name == ("all", "gsm8k_exact_match")
    assert (values.ids, values.values.mean()) == (tuple(f"gsm8k-{doc}" for doc in range(4)), 0.25)
    last = [{"doc_id": doc, "metrics": ["perplexity", "acc"], "perplexity": -3.2, "acc": doc % 2} for doc in range(4)]
    name, values = _values("lambada", ["lambada"], {"lambada": last})
    assert (name, values.values.mean()) == (("all", "lambada_acc"), 0.5)
    with pytest.raises(DataError, match="no metric of single rows"):
        _values("x", ["x"], {"x": [{"doc_id": 0, "metrics": ["perplexity"], "perplexity": -3.2}]})


@pytest.mark.parametrize(
    ("tasks", "mmlu"),
    [
        ({"mmlu_acc": 0.5, "mmlu_pro_exact_match": 0.1, "mmlu_stem_acc": 0.3}, 0.5),
        ({"mmlu_law_acc": 0.5, "mmlu_art_acc": 0.3, "mmlusr_acc": 0.9}, 0.4),
        ({"mmlu_pro_exact_match": 0.1}, None),
    ],
)
def test_mmlu_is_that_of_multiple_choice_and_counts_no_row_twice(tasks: dict[str, float], mmlu: float | None) -> None:
    rows = ("a", "b")
    found = {("all", name): Values(rows, ("", ""), rows, np.full(2, value)) for name, value in tasks.items()}
    assert mmlu_of(found) == (mmlu if mmlu is None else pytest.approx(mmlu))


def test_without_lm_eval_the_way_to_it_is_said(here: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("expunge.evaluation.utility"), "find_spec", lambda name: None)
    result = expunge(*SMALL, *CUSTOM, "--tasks", "mmlu")
    assert result.code == 2
    assert "pip install 'expunge[lm-eval]'" in result.err


def test_two_sources_of_mmlu_contradict_each_other(here: Path, expunge: Run) -> None:
    result = expunge(*SMALL, "--benchmark", "lume", "--data", "lume", "--tasks", "mmlu", "--mmlu", "0.4")
    assert result.code == 2
    assert "--mmlu and --tasks mmlu contradict each other" in result.err
