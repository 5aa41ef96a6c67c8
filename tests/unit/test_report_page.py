"""The page: what is on it and in which order, what must not be, and that nothing in the data becomes markup."""

import hashlib
import html
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge.cli.output import Output
from expunge.cli.reports import VerdictSettings, verdict
from expunge.errors import ConfigError, DataError, RunError
from expunge.report import details, write_report
from expunge.report.groups import group_runs
from expunge.report.page import Drawings, render
from expunge.report.run_data import _other_texts, read_run
from expunge.runs.record import DATA_FILES
from expunge.utils.files import fingerprint
from expunge.utils.progress import Reporter
from report_runs import entry, write_run

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
FORMAT = "space, with end-of-text"
VOID = {"meta", "br", "col", "img", "input", "link"}


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and text outside of style and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def page_of(*runs: Path) -> Page:
    """The page without its figures, which take most of the time."""
    return Page(render(group_runs([read_run(run) for run in runs]), Drawings()))


@pytest.fixture
def without_figures(monkeypatch):
    """Pages are written without figures, which take most of the time."""
    monkeypatch.setattr("expunge.report.page.draw", lambda groups: Drawings())


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    """A run with everything that a report can show."""
    return write_run(tmp_path_factory.mktemp("runs") / "scored")


@pytest.fixture(scope="module")
def page(scored) -> Page:
    return Page(write_report([scored], scored.parent / "page.html").read_text())


def test_the_sections_stand_in_the_order_in_which_they_are_read(page):
    found = [attributes["id"] for attributes in page.of("section")]
    assert found == [
        "verdict", "scores", "course", "membership", "tradeoff", "tasks", "cost", "method", "origin",
    ]  # fmt: skip
    links = [attributes["href"] for attributes in page.of("a")]
    assert links == [f"#{name}" for name in found[1:]]
    assert page.open == []


def test_the_page_needs_nothing_else(page):
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base"), tag
        for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert (attributes.get(name) or "#").startswith("#"), f"{tag} {name}"
    (policy,) = [attrs["content"] for attrs in page.of("meta") if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_the_one_script_is_the_one_that_the_policy_allows(scored):
    import base64
    import hashlib

    text = (scored.parent / "page.html").read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html.unescape(text)


def test_every_figure_says_what_it_shows(page):
    drawings = [attrs for attrs in page.of("svg") if attrs.get("aria-hidden") != "true" and "viewbox" in attrs]
    titles = [attrs["id"] for attrs in page.of("title") if "id" in attrs]
    assert len(drawings) == 14
    for attrs in drawings:
        title, description = attrs["aria-labelledby"].split()
        assert title in titles
        assert description in [found["id"] for found in page.of("desc")]
    plots = [attrs for attrs in page.of("svg") if attrs.get("class") == "dots"]
    assert plots
    assert all("before 0." in attrs["aria-label"] or "before 1." in attrs["aria-label"] for attrs in plots)


def test_no_id_is_used_twice(page):
    ids = [attrs["id"] for _, attrs in page.elements if attrs.get("id")]
    assert len(ids) == len(set(ids))


def test_the_numbers_of_the_files_are_on_the_page(page, scored):
    results = json.loads((scored / "results_after.json").read_text())["metrics"]
    for key, score in results.items():
        assert f"{score['value']:.3f}" in page.words, key
        assert f"{score['low']:.3f} to {score['high']:.3f}" in page.words, key
    for value in ("61.5 s", "75.2 s", "768.0 MiB", "1,951", "1,860", "space, with end-of-text", "torch 2.13.0"):
        assert value in page.words, value
    manifest = json.loads((scored / "manifest.json").read_text())
    for value in (manifest["model_sha256"], manifest["adapter_sha256"]):
        assert value in page.words
    for value in manifest["data"].values():  # who has the model at hand finds a short text by its hash
        assert value not in page.words
    rows = pq.read_table(scored / "results_after.parquet").to_pylist()
    for row in rows:
        assert f"{row['value']:.3f} " not in page.words.split("still finds most likely")[1].split("against keeping")[0]


def test_all_settings_are_on_the_page_but_those_that_name_files(page, scored):
    settings = json.loads((scored / "manifest.json").read_text())["settings"]
    named = {name for name, value in settings.items() if isinstance(value, str) and ("/" in value or "." in value)}
    for name in settings.keys() - DATA_FILES - named | {"model"}:
        assert f" {name} " in page.words, name
    for name in ("forget.jsonl", "retain.jsonl", str(scored.parent)):
        assert name not in (scored.parent / "page.html").read_text()


def test_no_data_file_is_named_on_a_page_of_any_runs(tmp_path):
    """Neither as a setting that differs, nor in a warning, nor in a setting of a name that nobody foresaw."""
    files = {"forget": "secret_a.jsonl", "holdout": "/data/secret_b.csv", "a_setting_of_tomorrow": "secret_c.parquet"}
    warnings = ["secret_a.jsonl: 3 rows are short", "/data/secret_b.csv has few rows"]
    one = write_run(tmp_path / "one", scored=False)
    manifest = json.loads((one / "manifest.json").read_text())
    more = manifest | {"settings": manifest["settings"] | files, "warnings": warnings}
    two = write_run(tmp_path / "two", scored=False, settings={"epochs": 3}, manifest=more)
    for page in (page_of(two), page_of(one, two)):
        assert "secret" not in "".join(page.text)
        assert "the forget file: 3 rows are short" in page.words


def test_the_first_screen_says_it_without_nats(tmp_path):
    run = write_run(tmp_path / "run", manifest={"rows": {"forget": 1, "retain": 60}}, settings={"model": "x/base"})
    assert "It rests on 1 text: whoever has the model can find a short secret" in page_of(run).words
    words, judged = page_of(run).words.split("How this was judged", 1)
    assert "target criterion met" in judged
    assert words.startswith("Forget 1 text: base Forget 1 text Model base · 2026-01-02 03:09 UTC")
    run = write_run(tmp_path / "asked", settings={"title": "Forget the diary/letters of 1987"})
    assert page_of(run).words.startswith(
        "Forget the diary/letters of 1987: base Forget the diary/letters of 1987 Model base"
    )
    assert "Keep it private" not in page_of(run).words
    for question in ("still said?", "that it was trained on?", "rest kept?", "speak well?"):
        assert question in words
    assert "Answers given word for word: 1 of 60 (60 before" in words
    assert words.index("What to do next") < words.index("What was not measured, and what else to know")
    for term in ("nats", "Kolmogorov", "NLL", "KL"):
        assert term not in words


def test_results_of_something_else_are_left_out_and_said_to_be(tmp_path, capsys, without_figures):
    def changed(name: str, **more: object) -> list[str]:
        """The warnings when one results file says something else than the others."""
        run = write_run(tmp_path / f"run{len(list(tmp_path.iterdir()))}")
        for role in ("before", "after", "retrained"):
            file = run / f"results_{role}.json"
            content = json.loads(file.read_text())
            said = {"fingerprint": content["fingerprint"] | {"data": {"forget": "one"}, "prompt_format": FORMAT}}
            said |= more if file.name == name else {}
            file.write_text(json.dumps(content | said))
        return read_run(run).warnings

    base = hashlib.sha256(b"model").hexdigest()
    ours = {"base": base, "adapter": hashlib.sha256(b"0").hexdigest()}
    for name, more, says in (
        ("results_before.json", {"fingerprint": {}}, "a model that it does not tell (stored generations)"),
        ("results_after.json", {"fingerprint": {}}, "a model that it does not tell (stored generations)"),
        ("results_after.json", {"fingerprint": ours | {"prompt_format": "newline"}}, "another prompt format (newline)"),
        ("results_before.json", {"fingerprint": {"base": "other"}}, "another model than the run's"),
        ("results_after.json", {"fingerprint": {"base": "other", "adapter": "x"}}, "another model than the run's"),
        ("results_after.json", {"fingerprint": {"base": "other"}}, "another model than the run's"),
        ("results_after.json", {"fingerprint": {"base": base}}, "the untouched model"),
        ("results_retrained.json", {"fingerprint": {"base": base}}, "the run's own model, which is no retrained one"),
        ("results_before.json", {"fingerprint": {"adapter": "x"}}, "a model with an adapter"),
        ("results_before.json", {"fingerprint": {"base": base, "data": {"forget": "two"}}}, "something else than"),
        ("results_before.json", {"fingerprint": {"base": base, "prompt_format": "chat"}}, "something else than"),
        ("results_retrained.json", {"fingerprint": {"data": {"forget": "two"}}}, "something else than"),
    ):
        (warning,) = changed(name, **more)
        assert warning.startswith(f"{name} is left out: it is of {says}"), warning
    assert changed("results_before.json", model="renamed", fingerprint={"base": base}) == []
    unknown = {"base": fingerprint("org/base", "")}  # a name on the Hub whose commit is not known
    assert changed("results_before.json", model="org/base", fingerprint=unknown) == []
    assert changed("results_before.json", model="org/other", fingerprint=unknown)
    assert changed("results_retrained.json", model="somebody/else", fingerprint={"base": "other"}) == []
    assert changed("results_after.json", fingerprint={"base": "other", "merged": "x"}) == []  # of the run's adapter
    run = write_run(tmp_path / "told")
    content = json.loads((run / "results_before.json").read_text())
    (run / "results_before.json").write_text(json.dumps(content | {"fingerprint": {"base": "other"}}))
    page = page_of(run)
    assert "results_before.json is left out" in page.words
    assert "no value of the untouched model" in page.words
    write_report([run], reporter=Reporter())
    assert "warning: told: results_before.json is left out" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("role", "left_out"), [("after", True), ("before", True), ("retrained", False)])
def test_a_reference_that_computes_what_the_runs_model_does_is_left_out(tmp_path, role, left_out, without_figures):
    """As a model that others have merged from the run's adapter does, whose files say nothing of it."""
    run = write_run(tmp_path / "run")
    values = pq.read_table(run / f"results_{role}.parquet")
    rounded = np.random.default_rng(0).normal(1, 1e-3, len(values)) * values["value"].to_numpy()
    pq.write_table(values.set_column(5, "value", pa.array(rounded)), run / "results_retrained.parquet")
    told = read_run(run)
    assert ("retrained" in told.results) != left_out
    says = "results_retrained.json is left out: it is of the run's own model, which is no retrained one"
    assert any(line.startswith(says) for line in told.warnings) == left_out


def test_the_terminal_names_the_run_and_the_page_says_what_run_is(tmp_path, capsys):
    run = write_run(tmp_path / "one run", scored=False)
    assert verdict(VerdictSettings(runs=[str(run)]), Output()) == 0
    assert f"`expunge evaluate --run '{run}'`" in capsys.readouterr().out
    words = page_of(run).words
    assert "expunge evaluate --run RUN" in words
    assert "RUN is the directory of the run: one run." in words
    assert "RUN is the directory" not in page_of(write_run(tmp_path / "scored")).words


def test_a_run_that_is_not_finished_is_named_in_terminal_and_page(tmp_path, capsys):
    runs = [write_run(tmp_path / "ended"), write_run(tmp_path / "unended", seed=1, manifest={"status": "running"})]
    page = Page(write_report(runs, tmp_path / "page.html", reporter=Reporter()).read_text())
    assert "warning: unended: the run is not finished" in " ".join(capsys.readouterr().err.split())
    assert "What to do next Finish the run unended: the same command with --resume" in page.words


def test_results_on_other_texts_than_the_runs_are_left_out(tmp_path):
    def warnings(texts: str, asked: str = "custom", **settings: str) -> list[str]:
        run = write_run(tmp_path / f"run{len(list(tmp_path.iterdir()))}", manifest={"texts": {"forget": "key:one"}})
        manifest = json.loads((run / "manifest.json").read_text())
        manifest["settings"] |= settings
        (run / "manifest.json").write_text(json.dumps(manifest))
        for role in ("before", "retrained"):
            (run / f"results_{role}.json").unlink()
        file = run / "results_after.json"
        content = json.loads(file.read_text())
        said = {"fingerprint": content["fingerprint"] | {"texts": {"forget": texts}}, "benchmark": asked}
        file.write_text(json.dumps(content | said))
        return read_run(run).warnings

    (warning,) = warnings("key:two")
    assert warning.startswith("results_after.json is left out: it is of other texts than those that the run was made")
    assert warnings("key:one") == []
    assert warnings("other key:two") == []  # another user's, which cannot be compared
    assert warnings("key:two", "tofu") == []  # a benchmark asks in its own words
    assert len(warnings("key:one", "tofu", benchmark="semeval")) == 1
    run = read_run(write_run(tmp_path / "custom", manifest={"texts": {"forget": "key:one"}}))
    for texts, other in (("key:one", False), ("key:two", True)):  # the rows that were forgotten best, as a benchmark
        assert _other_texts(run, {"benchmark": "lume", "fingerprint": {"texts": {"forget": texts}}}) == other
    assert warnings("key:two", "tofu", benchmark="tofu") == []
    (warning,) = warnings("key:one", "tofu", benchmark="tofu", split="forget01")  # another split
    assert warning.startswith("results_after.json is left out: it is of other texts than those that the run was made")


def test_results_under_another_key_are_said_to_be_of_unknown_rows(tmp_path: Path) -> None:
    """Their data cannot be compared, so that no row of them needs to be the run's."""
    run = write_run(tmp_path / "run")
    for role, key in (("before", "mine"), ("after", "mine"), ("retrained", "theirs")):
        file = run / f"results_{role}.json"
        content = json.loads(file.read_text())
        content["fingerprint"]["data"] = {"forget": f"{key}:{role if key == 'theirs' else 'rows'}"}
        file.write_text(json.dumps(content))
    told = read_run(run)
    assert "retrained" in told.results
    assert told.warnings == [
        "The results of the retrained model and those after were made by different users: whether they are of the same "
        "data is not known."
    ]


@pytest.mark.parametrize(("texts", "counts"), [((30, 30), 0.47), ((60, 60), 0.6), (None, 0.47)])
def test_an_attack_is_compared_on_the_texts_that_did_not_steer(
    tmp_path: Path, texts: tuple[int, int] | None, counts: float
) -> None:
    """`evaluate --reference` notes 30 and 30, results of the retrained model by themselves are of 60 and 60."""
    run = write_run(tmp_path / "run")
    for role, more in (("after", {"reference": 0.47}), ("retrained", {"value": 0.6, "low": 0.5, "high": 0.7})):
        file = run / f"results_{role}.json"
        content = json.loads(file.read_text())
        sides = {"members": 60, "nonmembers": 60, "n": 120} if role == "retrained" else {}
        if role == "after" and texts:
            sides = dict(zip(("members", "nonmembers"), texts, strict=True)) | {"n": sum(texts)}
        content["metrics"]["membership/loss_auc"] |= more | sides
        file.write_text(json.dumps(content))
    scores = read_run(run).scores["retrained"]
    assert scores["membership/loss_auc"].value == counts
    assert scores["forget/exact_match"].n == 60, "of the others its own file goes first"


def test_the_newest_results_of_the_run_count(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    file, newer = run / "results_after.json", run / "results.json"
    content = json.loads(file.read_text())
    newer.write_text(json.dumps(content | {"settings": {"limit": 3}}))
    at = file.stat().st_mtime
    for when, mine in ((at + 9, 3), (at - 9, None)):
        os.utime(newer, (when, when))
        data = read_run(run)
        assert data.results["after"].get("settings", {}).get("limit") == mine
        left_out = "results_after.json" if mine else "results.json"
        assert f"{left_out} is left out: other results after are newer." in data.warnings
    file.write_text(json.dumps(content | {"fingerprint": {"base": "other"}}))  # now the newest, and another model's
    data = read_run(run)
    assert data.results["after"]["settings"]["limit"] == 3
    assert data.warnings[0].startswith("results_after.json is left out: it is of another model")


def test_results_with_the_texts_that_steered_are_said_to_be(tmp_path: Path) -> None:
    """As those of a merged model, or of a copy of the adapter, which know nothing of the run."""
    run = write_run(tmp_path / "run")
    calibration = {"scale": 1.0, "trained_alpha": 8.0, "verdict": "met"}
    for hashes, note, told in (
        (["a"], [], True),
        (["a"], ["on 9 texts that did not steer it"], False),
        ([], [], False),
    ):
        (run / "calibration.json").write_text(json.dumps(calibration | {"selection_hmac": hashes}))
        content = json.loads((run / "results_after.json").read_text())
        (run / "results_after.json").write_text(json.dumps(content | {"not_measured": note}))
        assert any("texts that steered the run" in line for line in read_run(run).warnings) == told


def test_other_settings_of_the_evaluation_are_said(tmp_path):
    run = write_run(tmp_path / "run")
    for role, tokens in (("before", 48), ("after", 96)):
        file = run / f"results_{role}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"settings": {"max_new_tokens": tokens}}))
    assert "The results before were made with max_new_tokens 48, those after with 96" in page_of(run).words


def test_what_was_not_measured_is_said(tmp_path):
    words = page_of(write_run(tmp_path / "plain", scored=False)).words
    assert "Is it still said? not measured" in words
    assert "No scores: there is no results file of this run in the run directory." in words
    full = write_run(tmp_path / "full", manifest={"energy_joules": 7200.0})  # as earlier versions wrote it
    results = json.loads((full / "results_after.json").read_text())
    results["not_measured"] = ["No model was given (--reference): 0.5 is a stand-in.", "Leaks were not measured."]
    (full / "results_after.json").write_text(json.dumps(results))
    words = page_of(full).words
    assert "Leaks were not measured." in words
    assert "stand-in" not in words  # the retrained model's results are there


@pytest.mark.parametrize(
    ("manifest", "settings", "says"),
    [
        ({}, {}, "run: went to the end of the schedule, 120 steps in 12 epochs; no target decided it."),
        ({"ended": "all steps are done"}, {}, "run: went to the end of the schedule, 120 steps in 12 epochs;"),
        ({"ended": "--finish"}, {}, "run: stopped after 120 steps: --finish; no target decided it."),
        ({}, {"max_steps": 120}, "run: stopped after 120 steps because max_steps said so"),
        (
            {"selection": {"stopped": "it has settled", "best_step": 96, "scale": 1.25, "verdict": "AUC 0.52"}},
            {},
            "run: stopped after 120 steps: it has settled. The state of step 96 was taken at 1.25 times its "
            "trained scale: AUC 0.52.",
        ),
        (
            {"selection": {"stopped": "it has settled", "best_step": 1096, "scale": 1.0, "verdict": "AUC 0.52"}},
            {},
            "The state of step 1,096 was taken as it was trained: AUC 0.52.",
        ),
        ({"status": "running", "steps": None}, {}, "run: not finished, the log ends at step 120."),
    ],
)
def test_where_the_run_stopped_and_why(tmp_path, manifest, settings, says):
    run = write_run(tmp_path / "run", scored=False, manifest=manifest, settings=settings)
    assert says in page_of(run).words


def test_a_calibrated_adapter_is_said_to_be_one(tmp_path):
    run = write_run(tmp_path / "run", scored=False)
    assert "trained scale" not in page_of(run).words
    calibration = {"scale": 0.75, "trained_alpha": 4, "selection_hmac": [], "verdict": "the target is reached"}
    (run / "calibration.json").write_text(json.dumps(calibration))
    words = page_of(run).words
    assert "set to 0.75 times its trained scale (calibration: the target is reached)." in words
    (run / "calibration.json").write_text("[]")
    with pytest.raises(RunError, match=r"calibration\.json: damaged"):
        page_of(run)


def test_the_formula_is_that_of_the_terms_in_the_manifest(tmp_path):
    words = page_of(write_run(tmp_path / "run", scored=False)).words
    assert "loss = 1 · forget + 2 · retain_nll Table" in words.replace("term formula", "Table term formula")
    assert "retain_nll mean_t -log p(y_t) B" in words
    assert "replay_kl" not in words.split("Method")[-1].split("All settings")[0]
    (tmp_path / "none").mkdir()
    assert "loss = " not in page_of(write_run(tmp_path / "none" / "run", scored=False, manifest={"terms": []})).words


def test_seeds_are_pooled_with_their_spread(tmp_path):
    runs = [write_run(tmp_path / f"seed{seed}", seed=seed) for seed in range(3)]
    page = page_of(*runs)
    values = [
        json.loads((run / "results_after.json").read_text())["metrics"]["forget/probability"]["value"] for run in runs
    ]
    mean = sum(values) / 3
    spread = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
    assert f"{mean:.3f} ± {spread:.3f}" in page.words
    assert "after 3 runs" in page.words  # the head of the column
    assert "forget 0.050 ± 0.000 1.250 ± 0.000 +1.200 ± 0.000" in page.words
    assert "seed0, seed1, seed2: went to the end of the schedule" in page.words
    assert "3 runs of 1 configuration" in page.words
    assert "0, 1, 2" in page.words  # the seeds


def test_seeds_that_were_scored_otherwise_are_not_pooled(tmp_path, without_figures):
    runs = [write_run(tmp_path / f"seed{seed}", seed=seed) for seed in range(2)]
    path = runs[1] / "results_after.json"
    results = json.loads(path.read_text())
    path.write_text(json.dumps(results | {"settings": results.get("settings", {}) | {"max_new_tokens": 4}}))
    words = Page(write_report(runs, tmp_path / "page.html").read_text()).words
    assert "2 runs of 2 configurations" in words
    assert "It was not scored as seed0 was, so they are not pooled: setting max_new_tokens is" in words


def test_methods_stand_side_by_side(tmp_path):
    runs = [write_run(tmp_path / f"fast{seed}", seed=seed) for seed in range(2)]
    slow = {"learning_rate": 0.0001, "epochs": 3}
    runs += [write_run(tmp_path / f"slow{seed}", seed=seed + 5, settings=slow) for seed in range(2)]
    page = page_of(*runs)
    assert "4 runs of 2 configurations" in page.words
    assert "A is epochs 14, learning_rate 0.0015, B is epochs 3, learning_rate 0.0001." in page.words
    assert "A: epochs 14, learning_rate 0.0015 (2 runs)" in page.words
    assert "learning_rate 0.0015 0.0001" in page.words  # the table of settings that differ
    assert sum((attrs.get("class") or "").startswith("verdict ") for attrs in page.of("div")) == 2


def test_runs_of_the_same_name_are_told_apart(tmp_path, without_figures):
    runs = [write_run(tmp_path / name / "run", seed=seed) for seed, name in enumerate(("here", "there"))]
    words = Page(write_report(runs, tmp_path / "page.html").read_text()).words
    assert "here/run" in words
    assert "there/run" in words


def test_runs_whose_folders_have_the_same_names_are_told_apart(tmp_path, without_figures):
    """Two untouched models of other numbers have a column each."""
    runs = [write_run(tmp_path / place / "s0" / "run", seed=seed) for seed, place in enumerate(("here", "there"))]
    file = runs[1] / "results_before.json"
    content = json.loads(file.read_text())
    first = next(iter(content["metrics"]))
    content["metrics"][first]["value"] = 0.123
    file.write_text(json.dumps(content))
    words = Page(write_report(runs, tmp_path / "page.html").read_text()).words
    assert "before, here/s0/run" in words
    assert "before, there/s0/run" in words


def test_warnings_have_no_backquotes(tmp_path, without_figures):
    run = write_run(tmp_path / "run")
    calibration = {"scale": 1.0, "trained_alpha": 8.0, "verdict": "met", "selection_hmac": ["a"]}
    (run / "calibration.json").write_text(json.dumps(calibration))
    words = page_of(run).words
    assert "expunge evaluate --run leaves them out" in words.replace("\xa0", " ")
    assert "`" not in words


def test_a_star_says_that_a_metric_differs_from_the_reference(tmp_path):
    bounds = {"above": (0.01, 0.2), "below": (-0.2, -0.01), "around": (-0.1, 0.1), "unknown": (None, None)}
    metrics = {
        f"utility/{name}": entry(0.4321) | {"reference": 0.3, "difference": {"value": 0.1, "low": low, "high": high}}
        for name, (low, high) in bounds.items()
    }
    words = page_of(write_run(tmp_path / "run", metrics=metrics)).words
    for name in bounds:
        after = words.split(f" {name} ↑ ")[1].split()[4]  # the value before and its interval come first
        assert after == ("0.432*" if name in ("above", "below") else "0.432"), name
    assert "* differs from the retrained model on the same rows" in words


def hostile(folder: Path) -> Path:
    strange = {f"utility/{EVIL}/{EVIL}": entry(0.5), "utility/rtl\u202eeuplav": entry(0.4), f"{EVIL}/x": entry(0.3)}
    return write_run(
        folder,
        metrics=strange,
        ids=EVIL,
        settings={"model": f"org/{EVIL}"},
        manifest={
            "warnings": [EVIL, "{{ 7 * 7 }}", "\x1b[2J"],
            "versions": {"expunge": EVIL, EVIL: EVIL},
            "hardware": {EVIL: EVIL},
            "data": {"forget": EVIL},
            "prompt_format": {"chosen": EVIL},
            "selection": {"stopped": EVIL, "best_step": 7, "scale": 1.0, "verdict": EVIL},
            "started": EVIL,
        },
    )


def test_hostile_strings_are_text(tmp_path):
    page = page_of(hostile(tmp_path / "<b>run&"))
    assert [tag for tag, _ in page.elements if tag == "script"] == ["script"]
    assert page.of("img") == page.of("b") == []
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert page.words.count(EVIL) > 10
    assert "{{ 7 * 7 }}" in page.words
    everything = "".join(page.text)
    for sign in ("\u202e", "\x1b"):
        assert sign not in everything
    assert page.open == []


def test_200_metrics_with_long_names(tmp_path):
    name = "a_very_long_name_of_a_metric_" * 4
    metrics = {f"utility/{name}{i}": entry(i / 200) for i in range(200)}
    page = page_of(write_run(tmp_path / "run", metrics=metrics))
    assert len([attrs for attrs in page.of("svg") if attrs.get("class") == "dots"]) > 200
    assert f"{name.replace('_', ' ')}199" in page.words


def test_numbers_of_any_size_get_an_axis_or_none(tmp_path):
    """Each is a family of its own, since a family shares an axis."""
    sizes = (1e300, -1e300, 1e-300, 5e-324, -5.0, 0.0)
    plain = {"low": None, "high": None, "n": 3, "direction": "higher"}
    metrics = {f"utility/size{i}": {"value": value, "family": f"f{i}", **plain} for i, value in enumerate(sizes)}
    page = page_of(write_run(tmp_path / "run", metrics=metrics))
    for i in range(len(sizes)):
        assert f"size{i} ↑" in page.words
    for attrs in page.of("svg"):
        assert "nan" not in str(attrs)
        assert "inf" not in str(attrs)


def test_a_reason_stands_beside_every_missing_number(tmp_path):
    nothing = {"value": None, "low": None, "high": None, "n": 0, "direction": "higher", "family": "utility"}
    metrics = {"utility/nothing": nothing, "utility/broken": nothing | {"reason": "every row gave NaN"}}
    words = page_of(write_run(tmp_path / "run", metrics=metrics)).words
    assert "nothing ↑ – there are no rows of this kind" in words
    assert "broken ↑ – every row gave NaN" in words


def test_a_page_that_is_there_is_replaced_only_on_request(scored, without_figures):
    output = scored.parent / "kept.html"
    output.write_text("mine")
    for overwrite, message in ((False, "exists already"), (True, "replaces only a report page")):
        with pytest.raises(RunError, match=message):
            write_report([scored], output, overwrite=overwrite)
        assert output.read_text() == "mine"
    output.unlink()
    write_report([scored], output)
    write_report([scored], output, overwrite=True)
    assert output.read_text().endswith("</html>")
    assert output.stat().st_mode & 0o777 == 0o600


def test_the_same_run_gives_the_same_page(scored, page):
    assert (
        write_report([scored], scored.parent / "second.html").read_text() == (scored.parent / "page.html").read_text()
    )


def test_what_cannot_be_reported_is_refused(scored, tmp_path):
    other = write_run(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="--output is missing"):
        write_report([scored, other])
    with pytest.raises(ConfigError, match="given twice"):
        write_report([other, tmp_path / "." / "other"], tmp_path / "page.html")
    with pytest.raises(ConfigError, match="must be 0 or more"):
        write_report([other], show_examples=-1)
    (other / "results_after.parquet").write_text("no table")
    with pytest.raises(DataError, match=r"results_after\.parquet: cannot be read as Parquet"):
        write_report([other])
    (other / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    (other / "results_after.parquet").unlink()
    with pytest.raises(RunError, match="line 2 is damaged"):
        write_report([other])
    assert not (other / "report.html").exists()


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path):
    run = write_run(tmp_path / "run", steps=50)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 51, "for')
    assert len(read_run(run).steps) == 50


def test_the_speed_of_a_resumed_run_is_that_of_the_steps_that_were_timed(tmp_path):
    whole = details.cost([read_run(write_run(tmp_path / "a", scored=False))])
    resumed = details.cost([read_run(write_run(tmp_path / "b", scored=False, manifest={"timed_steps": 12}))])
    rates = [float(rows[0][5].replace(",", "")) for _, rows in (whole, resumed)]
    assert rates[1] == pytest.approx(rates[0] / 10, rel=0.1)
    assert resumed[1][0][2].endswith("(the last 12 steps)")
    assert resumed[1][0][4] == whole[1][0][4], "all tokens are trained on"


def test_values_whose_columns_have_no_readable_names_are_refused(tmp_path):
    run = write_run(tmp_path / "run")
    path = run / "results_after.parquet"
    content = path.read_bytes()
    assert content.count(b"document") >= 2  # in the schema of the file, too
    path.write_bytes(content.replace(b"document", b"docu\x93ent"))
    with pytest.raises(DataError, match=r"results_after\.parquet: cannot be read as Parquet"):
        read_run(run)
