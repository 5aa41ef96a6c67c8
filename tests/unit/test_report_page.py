"""The page: what is on it and in which order, what must not be, and that nothing in the data becomes markup."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from expunge.errors import ConfigError, DataError, RunError
from expunge.report import write_report
from report_runs import entry, write_run

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
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


def page_of(*runs: Path, **options) -> Page:
    output = runs[0].parent / "page.html"
    return Page(write_report(runs, output, overwrite=True, **options).read_text())


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    """A run with everything that a report can show."""
    return write_run(tmp_path_factory.mktemp("runs") / "scored")


@pytest.fixture(scope="module")
def page(scored) -> Page:
    return page_of(scored)


def test_the_sections_stand_in_the_order_in_which_they_are_read(page):
    found = [attributes["id"] for attributes in page.of("section")]
    assert found == [
        "verdict", "scores", "course", "membership", "tradeoff", "tasks", "cost", "method", "origin", "unmeasured",
    ]  # fmt: skip
    links = [attributes["href"] for attributes in page.of("a")]
    assert links == [f"#{name}" for name in found]
    assert page.open == []


def test_the_page_needs_nothing_else(page):
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base"), tag
        for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert (attributes.get(name) or "#").startswith("#"), f"{tag} {name}"
    (policy,) = [own["content"] for own in page.of("meta") if own.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_the_one_script_is_the_one_that_the_policy_allows(scored):
    import base64
    import hashlib

    text = (scored.parent / "page.html").read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html.unescape(text)


def test_every_figure_says_what_it_shows(page):
    drawings = [own for own in page.of("svg") if own.get("aria-hidden") != "true" and "viewbox" in own]
    titles = [own["id"] for own in page.of("title") if "id" in own]
    assert len(drawings) == 8
    for own in drawings:
        title, description = own["aria-labelledby"].split()
        assert title in titles
        assert description in [found["id"] for found in page.of("desc")]
    plots = [own for own in page.of("svg") if own.get("class") == "dots"]
    assert plots
    assert all("before 0." in own["aria-label"] or "before 1." in own["aria-label"] for own in plots)


def test_no_id_is_used_twice(page):
    ids = [own["id"] for _, own in page.elements if own.get("id")]
    assert len(ids) == len(set(ids))


def test_the_numbers_of_the_files_are_on_the_page(page, scored):
    results = json.loads((scored / "results_after.json").read_text())["metrics"]
    for key, own in results.items():
        assert f"{own['value']:.3f}" in page.words, key
        assert f"{own['low']:.3f} to {own['high']:.3f}" in page.words, key
    for value in ("61.5 s", "75.2 s", "0.75 GiB", "1,951", "1,860", "space, with end-of-text", "torch 2.13.0"):
        assert value in page.words, value
    manifest = json.loads((scored / "manifest.json").read_text())
    for value in (*manifest["data"].values(), manifest["model_sha256"], manifest["adapter_sha256"]):
        assert value in page.words


def test_all_settings_are_on_the_page_and_names_of_data_files_are_not(page, scored):
    settings = json.loads((scored / "manifest.json").read_text())["settings"]
    terms = page.words
    for name in settings.keys() - {"forget", "retain", "holdout", "instead", "data", "columns", "output"}:
        assert f" {name} " in terms, name
    assert "forget.jsonl" not in terms
    assert str(scored.parent) not in terms


def test_what_was_not_measured_is_said(tmp_path):
    words = page_of(write_run(tmp_path / "plain", scored=False)).words
    assert "The unlearned model was not scored: only losses are known." in words
    assert "No reference: how a model that never saw the texts would score is unknown." in words
    assert "Energy was not measured" in words
    assert "No scores: there is no results file in the run directory." in words
    measured = page_of(write_run(tmp_path / "full", manifest={"energy_joules": 7200.0})).words
    for sentence in ("was not scored", "No reference:", "Energy was not measured"):
        assert sentence not in measured
    assert "2.0 Wh" in measured


def test_what_a_results_file_says_of_the_reference_does_not_contradict_the_page(tmp_path):
    run = write_run(tmp_path / "run", manifest={"rows": {"forget": 60, "retain": 60, "holdout": 0}})
    results = json.loads((run / "results_after.json").read_text())
    results["not_measured"] = ["No model was given (--reference): 0.5 is a stand-in.", "Leaks were not measured."]
    results["metrics"]["holdout/drift"] = entry(0.01, "target", "drift") | {"target": 0.0}
    (run / "results_after.json").write_text(json.dumps(results))
    words = page_of(run).words
    assert "No test against the reference was run" in words
    assert "stand-in" not in words
    assert "Leaks were not measured." in words
    assert "No hold-out texts" not in words
    (run / "results_retrained.json").unlink()
    assert "No model was given (--reference): 0.5 is a stand-in." in page_of(run).words


@pytest.mark.parametrize(
    ("manifest", "settings", "says"),
    [
        ({}, {}, "run: went to the end of the schedule, 120 steps in 14 epochs; no target decided it."),
        ({}, {"max_steps": 120}, "run: stopped after 120 steps because max_steps said so"),
        (
            {"selection": {"stopped": "it has settled", "best_step": 96, "scale": 1.25, "verdict": "AUC 0.52"}},
            {},
            "run: stopped after 120 steps: it has settled. The state of step 96 was taken at 1.25 of its trained "
            "strength (AUC 0.52).",
        ),
        ({"status": "running", "steps": None}, {}, "run: not finished, the log ends at step 120."),
    ],
)
def test_where_the_run_stopped_and_why(tmp_path, manifest, settings, says):
    run = write_run(tmp_path / "run", scored=False, manifest=manifest, settings=settings)
    assert says in page_of(run).words


def test_a_calibrated_adapter_is_said_to_be_one(tmp_path):
    run = write_run(tmp_path / "run", scored=False)
    assert "trained strength" not in page_of(run).words
    (run / "calibration.json").write_text('{"scale": 0.75, "verdict": "the target is reached"}')
    words = page_of(run).words
    assert "set to 0.75 of its trained strength (calibration: the target is reached)." in words
    (run / "calibration.json").write_text("[]")
    with pytest.raises(RunError, match=r"calibration\.json: damaged"):
        page_of(run)


def test_the_formula_is_that_of_the_settings(tmp_path):
    token = page_of(write_run(tmp_path / "a", scored=False)).words
    sequence = page_of(
        write_run(tmp_path / "b", scored=False, settings={"level": "sequence", "kl_direction": "forward", "beta": 0.1})
    ).words
    assert "mean over forget tokens" in token
    assert "mean over forget texts" in sequence
    assert "β = 0.1" in sequence
    assert "1.5 · KL(retain)" in token
    assert "Σ v p ( v ) (log p ( v ) − log p ref ( v ))" in token
    assert "Σ v p ref ( v ) (log p ref ( v ) − log p ( v ))" in sequence


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


def test_methods_stand_side_by_side(tmp_path):
    runs = [write_run(tmp_path / f"fast{seed}", seed=seed) for seed in range(2)]
    slow = {"learning_rate": 0.0001, "epochs": 3}
    runs += [write_run(tmp_path / f"slow{seed}", seed=seed + 5, settings=slow) for seed in range(2)]
    page = page_of(*runs)
    assert "4 runs of 2 configurations" in page.words
    assert "A is epochs 14, learning_rate 0.0015, B is epochs 3, learning_rate 0.0001." in page.words
    assert "A: epochs 14, learning_rate 0.0015 (2 runs)" in page.words
    assert "learning_rate 0.0015 0.0001" in page.words  # the table of settings that differ
    assert [own["class"] for own in page.of("div") if (own.get("class") or "").startswith("verdict")] == [
        "verdict open"
    ] * 2


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / name / "run", seed=seed) for seed, name in enumerate(("here", "there"))]
    words = Page(write_report(runs, tmp_path / "page.html").read_text()).words
    assert "here/run" in words
    assert "there/run" in words


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
    assert "* differs from the reference on the same rows" in words


def test_further_results_files_are_checkpoints(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "results_step40.json").write_text((run / "results_after.json").read_text())
    words = page_of(run).words
    assert "run, step40" in words


def hostile(folder: Path) -> Path:
    strange = {f"utility/{EVIL}/{EVIL}": entry(0.5), "utility/rtl\u202eeuplav": entry(0.4), f"{EVIL}/x": entry(0.3)}
    return write_run(
        folder,
        metrics=strange,
        ids=EVIL,
        settings={"model": f"org/{EVIL}"},
        manifest={
            "warnings": [EVIL, "{{ 7 * 7 }}", "\x1b[2J"],
            "versions": {EVIL: EVIL},
            "hardware": {EVIL: EVIL},
            "data": {"forget": EVIL},
            "join": {"chosen": EVIL},
            "selection": {"stopped": EVIL, "best_step": EVIL, "scale": 1.0, "verdict": EVIL},
            "started": EVIL,
        },
    )


def test_hostile_strings_are_text(tmp_path):
    page = page_of(hostile(tmp_path / "<b>run&"))
    assert [tag for tag, _ in page.elements if tag == "script"] == ["script"]
    assert page.of("img") == page.of("b") == []
    assert not [name for _, own in page.elements for name in own if name.startswith("on")]
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
    assert len([own for own in page.of("svg") if own.get("class") == "dots"]) > 200
    assert f"{name.replace('_', ' ')}199" in page.words


def test_numbers_of_any_size_get_an_axis_or_none(tmp_path):
    """Each is a family of its own, since a family shares an axis."""
    sizes = (1e300, -1e300, 1e-300, -5.0, 0.0)
    plain = {"low": None, "high": None, "n": 3, "direction": "higher"}
    metrics = {f"utility/size{i}": {"value": value, "family": f"f{i}", **plain} for i, value in enumerate(sizes)}
    page = page_of(write_run(tmp_path / "run", metrics=metrics))
    for i in range(len(sizes)):
        assert f"size{i} ↑" in page.words
    for own in page.of("svg"):
        assert "nan" not in str(own)
        assert "inf" not in str(own)


def test_numbers_that_were_not_measured_leave_a_gap(tmp_path):
    nothing = {"value": None, "low": None, "high": None, "n": 0, "direction": "higher", "family": "utility"}
    words = page_of(write_run(tmp_path / "run", metrics={"utility/nothing": nothing})).words
    assert "utility: nothing" not in words


def test_a_page_that_is_there_is_replaced_only_on_request(scored):
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


def test_the_same_run_gives_the_same_page(scored):
    first = write_report([scored], scored.parent / "first.html").read_bytes()
    assert write_report([scored], scored.parent / "second.html").read_bytes() == first


def test_what_cannot_be_reported_is_refused(scored, tmp_path):
    other = write_run(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="--output is missing"):
        write_report([scored, other])
    with pytest.raises(ConfigError, match="given twice"):
        write_report([other, tmp_path / "." / "other"], tmp_path / "page.html")
    with pytest.raises(ConfigError, match="must be 0 or more"):
        write_report([other], show_examples=-1)
    (other / "results_after.parquet").write_text("no table")
    with pytest.raises(DataError, match="not a file of per-example values"):
        write_report([other])
    (other / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    (other / "results_after.parquet").unlink()
    with pytest.raises(RunError, match="line 2 is damaged"):
        write_report([other])
    assert not (other / "report.html").exists()


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path):
    run = write_run(tmp_path / "run", steps=50)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 51, "np')
    assert "50 steps" in page_of(run).words
