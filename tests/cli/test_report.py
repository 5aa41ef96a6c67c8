"""The report through the command line: from a run over its evaluation to the page, its figures and its card."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmark_data import write_muse, write_tofu
from workspace import FORGET, MARKER, RETAIN, Result, snapshot, write_jsonl

from expunge.cli.output import Output
from expunge.cli.reports import write_run_report
from expunge.report.forget_texts import shown_examples
from expunge.report.run_data import read_run
from expunge.runs.record import read_manifest
from expunge.utils.text import show_number
from report_runs import write_run

pytestmark = pytest.mark.usefixtures("figures")
Run = Callable[..., Result]
EVALUATE = ("evaluate", "--model", "model", "--benchmark", "semeval", "--data", "data", "--max-new-tokens", "6")
TORCHLESS = """
import sys
from expunge.cli.main import main
code = main(sys.argv[1:])
heavy = sorted({"torch", "transformers", "peft", "accelerate", "datasets"} & sys.modules.keys())
assert not heavy, heavy
sys.exit(code)
"""


@pytest.fixture
def scored(work: Path, expunge: Run) -> Path:
    """The finished run `done`, with the results of the model before and after."""
    (work / "data").mkdir()
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        kinds = [("Task1", "sc1"), ("Task1", "qa0"), ("Task2", "sc1"), ("Task2", "qa0")]
        rows = [{**row, "id": row["id"] + kind, "task": task} for row, (task, kind) in zip(rows, kinds, strict=False)]
        write_jsonl(work / f"data/{name}.jsonl", rows)
    for name, rows in (("member", FORGET), ("nonmember", RETAIN)):
        write_jsonl(work / f"data/{name}.jsonl", [{"id": row["id"], "document": row["input"]} for row in rows])
    for role, more in (("before", ()), ("after", ("--adapter", "done"))):
        result = expunge(*EVALUATE, *more, "--output", f"done/results_{role}.json")
        assert result.code == 0, result.err
    return work / "done"


def test_unlearn_ends_with_the_verdict_and_the_page(work: Path, expunge: Run) -> None:
    from workspace import QUICK, UNLEARN

    result = expunge(*UNLEARN, *QUICK)
    assert result.code == 0, result.err
    assert result.out.splitlines()[-1] == "report    run/report.html"
    assert "Not shown yet: 4 of 4 questions are open" in result.out
    page = Path("run/report.html").read_text()
    assert page.endswith("</html>")
    assert MARKER not in page
    assert Path("run/report.html").stat().st_mode & 0o777 == 0o600


def test_from_the_evaluation_to_page_figures_and_card(
    scored: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("expunge.report.drawing.save", lambda figure, stem: [(stem.with_suffix(".svg"), b"<svg/>")])
    result = expunge("report", "done", "--card", "--figures", "figures", "--overwrite")
    assert result.code == 0, result.err
    assert result.out.splitlines() == [
        "report    done/report.html", "figures   figures", "card      done/adapter/README.md",
    ]  # fmt: skip
    page = Path("done/report.html").read_text()
    metrics = json.loads(Path("done/results_after.json").read_text())["metrics"]
    for key in ("forget/rouge_l_recall", "forget/probability", "retain/probability", "membership/loss_auc"):
        assert show_number(metrics[key]["value"]) in page
    assert "Membership attack by loss" in page
    assert "forget texts that are still most likely" in page
    files = [*Path("figures").iterdir(), Path("done/report.html"), Path("done/adapter/README.md")]
    assert {path.suffix for path in files} == {".svg", ".html", ".md"}
    for path in files:
        assert MARKER.encode() not in path.read_bytes(), path


def test_evaluate_shows_the_untouched_model_beside_the_unlearned_one(scored: Path, expunge: Run) -> None:
    result = expunge(*EVALUATE, "--adapter", "done", "--output", "done/results_after.json", "--overwrite")
    heads = [line.split() for line in result.out.splitlines() if line.split()[:2] == ["before", "after"]]
    assert [head[:4] for head in heads] == [["before", "after"], ["before", "after", "95", "%"]]
    tables = [line for line in result.out.splitlines() if not line.startswith(("note ", "results "))]
    assert max(map(len, tables)) < 100
    before = json.loads(Path("done/results_before.json").read_text())["metrics"]["retain/probability"]["value"]
    (line,) = [line for line in result.out.splitlines() if line.startswith("retain probability ↑")]
    assert line.split()[3] == f"{before:.3f}"


def test_a_damaged_file_beside_the_results_is_told_before_the_work(scored: Path, expunge: Run) -> None:
    (scored / "results_before.json").write_text("{}")
    result = expunge(*EVALUATE, "--adapter", "done", "--output", "done/results_new.json")
    assert result.code == 2
    assert "results_before.json: not a results file" in result.err
    assert not (scored / "results_new.json").exists()


def test_the_card_is_one_that_the_hub_reads(scored: Path, expunge: Run) -> None:
    from huggingface_hub import ModelCard

    assert expunge("report", "done", "--card", "--overwrite").code == 0
    text = (scored / "adapter/README.md").read_text()
    data = ModelCard(text).data
    assert (data.base_model, data.library_name, data.pipeline_tag) == (None, "peft", "text-generation")
    metrics = json.loads((scored / "results_after.json").read_text())["metrics"]
    scores = {result.metric_type: result.metric_value for result in data.eval_results}
    assert scores["forget/probability"] == metrics["forget/probability"]["value"]
    whole = {key: item["value"] for key, item in metrics.items() if key.count("/") == 1 and item["value"] is not None}
    assert scores == whole
    row = next(line for line in text.splitlines() if line.startswith("| forget: probability ↓ |"))
    assert row.count("|") == 5
    assert f"| {show_number(scores['forget/probability'])} (95% interval" in row


def test_examples_are_shown_on_request_alone_and_under_a_banner(scored: Path, expunge: Run) -> None:
    folder = "done/predictions_after"
    after = ("--adapter", "done", "--output", "done/results_after.json", "--overwrite", "--keep-predictions", folder)
    assert expunge(*EVALUATE, *after).code == 0
    assert expunge("report", "done", "--output", "page.html").code == 0
    assert MARKER not in Path("page.html").read_text()

    result = expunge("report", "done", "--output", "shown.html", "--show-examples", "2")
    assert result.code == 0, result.err
    assert "it holds texts of the forget set" in result.out
    page = Path("shown.html").read_text()
    assert "For internal use only: this page shows 2 texts of the forget set." in page
    assert page.count('<div class="example">') == 2
    assert sum(row["output"] in page for row in FORGET) == 2
    assert "Texts of the forget set are not in this page" not in page
    assert Path("shown.html").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("benchmark", "split", "write"), [("tofu", "forget01", write_tofu), ("muse", None, write_muse)]
)
def test_examples_of_a_benchmark_are_read_as_the_run_read_them(
    work: Path, benchmark: str, split: str | None, write: Callable[[Path], Path]
) -> None:
    data = str(write(work / benchmark))
    run = write_run(work / "other", settings={"benchmark": benchmark, "data": data, "split": split, "forget": None})
    (shown, *_) = shown_examples(read_run(run), 3)
    assert MARKER in shown.prompt + shown.completion


def test_examples_that_are_gone_are_an_error(work: Path, expunge: Run) -> None:
    Path("forget.jsonl").unlink()
    result = expunge("report", "done", "--output", "page.html", "--show-examples", "1")
    assert result.code == 2
    assert "--show-examples: the forget texts of done cannot be read again" in result.err
    assert not Path("page.html").exists()


def test_a_run_that_ends_is_read_once_for_its_page_card_and_verdict(
    scored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def noted(path: Path) -> dict[str, Any]:
        read.append(path)
        return read_manifest(path)

    monkeypatch.setattr("expunge.report.run_data.read_manifest", noted)
    write_run_report(scored, Output(json=True, quiet=True))
    assert len(read) == 1


def test_several_runs_on_one_page(work: Path, expunge: Run) -> None:
    for seed in range(2):
        write_run(work / f"seed{seed}", seed=seed)
    result = expunge("report", "seed0", "seed1", "done", "--output", "all.html")
    assert result.code == 0, result.err
    page = Path("all.html").read_text()
    assert "3 runs of 2 configurations" in page
    assert re.search(r"± 0\.\d+<", page)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("report", "done"), "done/report.html exists already"),
        (("report", "done", "done", "--output", "p.html"), "given twice"),
        (("report", "done", "model", "--output", "p.html"), "model: not a run directory (no manifest.json)"),
        (("report", "done", "--show-examples", "-1", "--overwrite"), "--show-examples -1: must be 0 or more"),
        (("report", "done", "--figures", "model/config.json", "--overwrite"), "model/config.json"),
        (("report",), "runs"),
    ],
)
def test_what_is_refused_leaves_everything_as_it_was(work: Path, expunge: Run, arguments, message) -> None:
    before = snapshot(work)
    result = expunge(*arguments)
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert snapshot(work) == before


def test_ten_runs_take_seconds_and_no_torch(work: Path) -> None:
    """Processor time of the command, start included: less than the time on the clock only on a busy machine."""
    runs = [str(write_run(work / f"seed{seed}", seed=seed, steps=2000, rows=300)) for seed in range(10)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", TORCHLESS, "report", *runs, "--output", "page.html"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert Path("page.html").is_file()
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 15  # 3 to 6 s


def test_examples_and_cards_need_no_torch_either(work: Path) -> None:
    shutil.copy(work / "forget.jsonl", work / "kept.jsonl")
    options = ["--show-examples", "1", "--card", "--output", "page.html"]
    done = subprocess.run(
        [sys.executable, "-c", TORCHLESS, "report", "done", *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["forget.jsonl", "done/manifest.json", "done/adapter/adapter_model.safetensors"])
def test_overwrite_replaces_pages_alone(work: Path, expunge: Run, name: str) -> None:
    content = (work / name).read_bytes()
    told = expunge("report", "done", "--output", name, "--overwrite")
    assert told.code == 2
    assert "--overwrite replaces only a report page" in told.err
    assert (work / name).read_bytes() == content
