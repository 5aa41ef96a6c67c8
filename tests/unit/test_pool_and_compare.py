"""What a comparison calls best, what it pools, and how it is written."""

import csv
import io
import json
import math
import statistics
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from expunge.errors import ConfigError, DataError
from expunge.evaluation.compare import Column, Comparison, Row, best_cell, compare
from expunge.evaluation.compare_formats import as_csv, as_latex, as_table, printable
from expunge.evaluation.estimate import Estimate
from expunge.evaluation.pool import configuration_difference, pool_runs
from expunge.evaluation.results import measured_metrics
from expunge.report.groups import group_runs
from expunge.report.run_data import read_run
from report_runs import write_run

PRINT = {"base": "b0", "data": {"forget": "f00"}, "prompt_format": "none, with end-of-text"}


def results(value: float | None, **others: Any) -> dict[str, Any]:
    """A results file with one metric; its interval is value ± 0.1."""
    ends = {"low": None, "high": None} if value is None else {"low": value - 0.1, "high": value + 0.1}
    entry = {"value": value, **ends, "n": 40, "direction": "lower", "source": "s", "family": "text"}
    file = {"schema": 1, "benchmark": "custom", "settings": {"split": "v"}, "fingerprint": PRINT}
    return file | {"metrics": {"forget/probability": entry}} | others


def save(path: Path, content: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


def cell(low: float, value: float, high: float, direction: str | None = "lower", target: float | None = None):
    return Estimate(value, low, high, 10, direction=direction, target=target)


@pytest.mark.parametrize(
    ("cells", "best"),
    [
        ([cell(0.1, 0.2, 0.3), cell(0.31, 0.4, 0.5)], 0),
        ([cell(0.1, 0.2, 0.3), cell(0.3, 0.4, 0.5)], None),  # they touch
        ([cell(0.1, 0.2, 0.3, "higher"), cell(0.31, 0.4, 0.5, "higher")], 1),
        ([cell(0.1, 0.2, 0.3), cell(0.4, 0.45, 0.5), cell(0.0, 0.05, 0.09)], 2),
        ([cell(0.1, 0.2, 0.3), cell(0.4, 0.45, 0.5), cell(0.0, 0.05, 0.11)], None),
        ([cell(0.1, 0.2, 0.3), cell(0.15, 0.25, 9.0), cell(0.01, 0.02, 0.03)], 2),  # others may overlap
        ([cell(0.4, 0.5, 0.6, "target", 0.5), cell(0.7, 0.8, 0.9, "target", 0.5)], 0),
        ([cell(0.4, 0.45, 0.5, "target", 0.5), cell(0.52, 0.56, 0.6, "target", 0.5)], None),  # as near from below
        ([cell(0.1, 0.2, 0.3, "target", 0.5), cell(0.6, 0.62, 0.65, "target", 0.5)], 1),
        ([cell(0.1, 0.2, 0.3, "target", 0.5), cell(0.6, 0.62, 0.65, "target", 0.7)], None),
        ([cell(0.1, 0.2, 0.3, None), cell(0.6, 0.62, 0.65, None)], None),
        ([cell(0.1, 0.2, 0.3), None], None),
        ([cell(0.1, 0.2, 0.3), None, cell(0.6, 0.7, 0.8)], 0),
        ([cell(0.1, 0.2, 0.3), Estimate(0.9, direction="lower")], None),  # who knows
    ],
)
def test_best_is_only_what_overlaps_with_nothing(cells, best):
    assert best_cell(cells) == best


def test_runs_are_pooled():
    values = [0.31, 0.45, 0.29]
    pool = pool_runs(
        [(f"{i}.json", results(value, settings={"split": "v", "seed": i})) for i, value in enumerate(values)]
    )
    found = pool["forget/probability"]
    assert found.value == pytest.approx(statistics.fmean(values))
    assert found.std == pytest.approx(statistics.stdev(values))
    assert found.high - found.value == pytest.approx(4.302653 * statistics.stdev(values) / 3**0.5)
    assert (found.runs, found.n, found.direction) == (3, 40, "lower")


def test_a_metric_that_a_run_lacks_is_the_mean_of_the_others():
    found = pool_runs([("a", results(0.2)), ("b", results(None)), ("c", results(0.4))])["forget/probability"]
    assert (found.value, found.runs) == (pytest.approx(0.3), 2)
    found = pool_runs([("a", results(0.2)), ("b", results(None))])["forget/probability"]
    assert (found.value, found.runs) == (0.2, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.std)
    found = pool_runs([("a", results(None)), ("b", results(None))])["forget/probability"]
    assert not found.known
    assert found.runs == 0


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"benchmark": "tofu"}, "benchmark is custom in one and tofu in the other"),
        ({"settings": {"split": "train"}}, "setting split is v in one and train in the other"),
        ({"settings": {"split": "v", "max_new_tokens": 8}}, "setting max_new_tokens is None in one and 8 in the other"),
        ({"fingerprint": PRINT | {"data": {"forget": "f01"}}}, "the forget data is not the same"),
        ({"fingerprint": PRINT | {"data": {"forget": "f00", "retain": "x"}}}, "the retain data is not the same"),
        ({"fingerprint": PRINT | {"base": "b1"}}, "the base model is not the same"),
        ({"fingerprint": PRINT | {"prompt_format": "chat, with end-of-text"}}, "the prompt format is not the same"),
    ],
)
def test_runs_of_different_configurations_are_not_pooled(other, difference):
    with pytest.raises(DataError, match=f"^a and b are not runs of one configuration: {difference}$"):
        pool_runs([("a", results(0.2)), ("b", results(0.3, **other))])


def test_one_adapter_is_one_run():
    files = [
        (name, results(0.2, fingerprint=PRINT | {"adapter": adapter})) for name, adapter in (("a", "1"), ("b", "1"))
    ]
    with pytest.raises(DataError, match=r"^a and b are of one adapter, which is one run: give each once$"):
        pool_runs(files)


def test_the_untouched_model_beside_each_run_is_one_model():
    files = [(name, results(0.2, fingerprint=PRINT | {"adapter": None})) for name in ("a", "b")]
    found = pool_runs(files)["forget/probability"]
    assert found == pool_runs(files[:1])["forget/probability"]
    assert (found.value, found.runs) == (0.2, 1)


def test_runs_that_were_trained_otherwise_are_not_pooled(tmp_path):
    runs = [
        write_run(tmp_path / name, seed=seed, settings=settings)
        for seed, (name, settings) in enumerate({"a": {}, "b": {}, "c": {"learning_rate": 1e-4}}.items())
    ]
    files = [(run / "results_after.json", results(0.2, fingerprint=PRINT | {"adapter": run.name})) for run in runs]
    assert pool_runs(files[:2])["forget/probability"].runs == 2
    with pytest.raises(DataError, match=r"they were trained with learning_rate 0.0015 and 0.0001$"):
        pool_runs(files)


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ({"model": "/data/models/m"}, {"model": "../models/m"}, ""),
        ({"revision": "main"}, {"compile": "off", "gradient_checkpointing": True}, ""),
        ({"benchmark": "tofu"}, {"benchmark": "tofu", "retain_test": 0.0}, ""),
        ({"retain_test": 0.2}, {"retain_test": 0.1}, "retain_test 0.2 and 0.1"),
    ],
)
def test_how_a_run_was_computed_is_no_method(tmp_path, one, other, told):
    runs = [write_run(tmp_path / str(seed), seed=seed, settings=settings) for seed, settings in enumerate((one, other))]
    _assert_pooled(runs, told)
    assert len(group_runs([read_run(run) for run in runs])[0].runs) == (1 if told else 2)


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ({"origin_sha256": "o"}, {}, "another origin"),
        ({"data": {"forget": "k:1", "instead": "k:2"}}, {"data": {"forget": "k:1"}}, "other data"),
        ({"data": {"forget": "k:1"}}, {"data": {"forget": "l:1"}}, ""),  # of another user
        ({"model_sha256": "m"}, {}, "another model"),
    ],
)
def test_runs_on_other_data_are_not_pooled(tmp_path, one, other, told):
    _assert_pooled(
        [write_run(tmp_path / name, manifest=manifest) for name, manifest in (("a", one), ("b", other))], told
    )


def test_a_setting_that_an_older_manifest_lacks_and_a_file_by_itself_are_no_difference(tmp_path):
    runs = [write_run(tmp_path / name) for name in "ab"]
    file = runs[1] / "manifest.json"
    content = json.loads(file.read_text())
    del content["settings"]["ema_steps"]
    file.write_text(json.dumps(content))
    _assert_pooled(runs, "")
    file.write_text("{")
    assert pool_runs([(runs[1] / "results_after.json", results(0.2, fingerprint=PRINT | {"adapter": "b"}))])


def _assert_pooled(runs, told):
    """Whether the results of these runs are pooled, or refused with this message."""
    files = [(run / "results_after.json", results(0.2, fingerprint=PRINT | {"adapter": run.name})) for run in runs]
    if told:
        with pytest.raises(DataError, match=f"they were trained with {told}$"):
            pool_runs(files)
    else:
        assert pool_runs(files)["forget/probability"].runs == 2


def test_equal_seeds_are_no_certainty():
    """Two runs of one value: the interval is that of their rows, not a point that is best beyond doubt."""
    found = pool_runs([("a", results(0.2)), ("b", results(0.2))])["forget/probability"]
    assert found.std == 0
    assert (found.low, found.high) == pytest.approx((0.1, 0.3))


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("membership/loss_auc", 0, 1),
        ("membership/min_k_20_tpr_at_1_fpr/Task2 sc", 0, 1),
        ("forget/probability", 0, 1),
        ("forget/leak_at_8/Task1", 0, 1),
        ("retain/truth_ratio", 0, 1),
        ("all/task_aggregate", 0, 1),
        ("forget/perplexity", 1, None),
        ("forget/probability/own_minus_mismatched", None, None),
        ("all/a number of nobody", None, None),
    ],
)
def test_an_interval_ends_where_its_metric_does(name: str, low: float | None, high: float | None) -> None:
    runs = [(str(i), results(0.0)) for i in range(2)]
    for (_, content), value in zip(runs, (0.6, 1.0), strict=True):
        content["metrics"] = {
            name: content["metrics"]["forget/probability"] | {"value": value, "low": value, "high": value}
        }
    found = pool_runs(runs)[name]
    half = 12.706205 * 0.4 / 2
    assert found.low == pytest.approx(0.8 - half if low is None else low)
    assert found.high == pytest.approx(0.8 + half if high is None else high)


def test_adapter_and_seed_are_no_difference():
    assert configuration_difference(results(0.2), results(0.2, fingerprint=PRINT | {"adapter": "a1"})) is None
    assert configuration_difference(results(0.2), results(0.2, settings={"split": "v", "seed": 3})) is None


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([], "must be an object"),
        ({}, "field value is missing"),
        ({"value": "0.5"}, "field value must be a finite number or null"),
        ({"value": True}, "field value must be a finite number or null"),
        ({"value": float("nan")}, "field value must be a finite number or null"),
        ({"value": 0.5, "n": "many"}, "field n must be"),
        ({"value": 0.5, "members": "many", "nonmembers": 3}, "field members must be a finite number or null"),
        ({"value": 0.5, "members": 3, "nonmembers": 0.5}, "field nonmembers must be a whole number of rows"),
        ({"value": 0.5, "direction": "up"}, "direction must be one of higher, lower, target"),
        ({"value": 0.5, "direction": "target"}, "has the direction target, and no target"),
        ({"value": 0.5, "low": 0.9, "high": 0.1}, "low is larger than high"),
    ],
)
def test_a_malformed_metric_is_named(entry, message):
    with pytest.raises(DataError, match=rf"^x\.json: metric a/\\x1bb: {message}"):
        measured_metrics("x.json", {"benchmark": "custom", "metrics": {"a/\x1bb": entry}})


def test_a_file_of_another_benchmark_needs_metrics():
    with pytest.raises(DataError, match=r"^x\.json: field metrics is missing$"):
        measured_metrics("x.json", {"benchmark": "tofu", "forget": 3})


def test_half_an_interval_is_none():
    (found,) = measured_metrics("x", {"benchmark": "x", "metrics": {"a": {"value": 1, "low": 0.5}}}).values()
    assert found.value == 1.0
    assert not found.bounded


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a.json", "b.json"], ["a", "b"]),
        (["one/r.json", "two/r.json"], ["one/r", "two/r"]),
        (["x/one/results.json", "x/two/results.json"], ["one", "two"]),
        (["one/results_after.json", "two/results_after.json"], ["one/after", "two/after"]),
        (["a/x/r.json", "b/x/r.json", "c/y/z.json"], ["a/x/r", "b/x/r", "z"]),
        (["s0/results.json,s1/results.json", "other.json"], ["s0+s1", "other"]),
        (["a/s0/r.json,a/s1/r.json", "b/s0/r.json,b/s1/r.json"], ["a/s0+s1/r", "b/s0+s1/r"]),
        (["0.json,1.json,2.json,3.json,4.json"], ["0+1+2+..."]),
    ],
)
def test_names_are_the_shortest_that_differ(tmp_path, monkeypatch, files, names):
    monkeypatch.chdir(tmp_path)
    for file in ",".join(files).split(","):
        save(tmp_path / file, results(0.5))
    assert [column.name for column in compare(files).columns] == names


def test_folders_with_commas_in_their_names_are_pooled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [f"lr=1,s{seed}/results.json" for seed in range(2)]
    for file in files:
        save(tmp_path / file, results(0.5))
    (column,) = compare(files, pool=True).columns
    assert column.name == "lr=1,s0+lr=1,s1"


def test_a_run_directory_is_a_column_per_results_file(tmp_path):
    for name in ("retrained", "after", "zeta", "before"):
        save(tmp_path / "run" / f"results_{name}.json", results(0.5))
    assert [column.name for column in compare([str(tmp_path / "run")]).columns] == [
        "before", "after", "retrained", "zeta"
    ]  # fmt: skip


def test_run_directories_are_pooled_file_by_file(tmp_path):
    for seed, value in enumerate((0.2, 0.4)):
        for name in ("before", "after"):
            save(tmp_path / f"s{seed}" / f"results_{name}.json", results(value if name == "after" else 0.9))
    runs = [str(tmp_path / "s0"), str(tmp_path / "s1")]
    for comparison in (compare([",".join(runs)]), compare(runs, pool=True)):
        assert [column.name for column in comparison.columns] == ["before", "after"]
        assert comparison.rows[0].cells[1].value == pytest.approx(0.3)
        assert comparison.rows[0].cells[1].runs == 2
    save(tmp_path / "s1" / "results_extra.json", results(0.5))
    with pytest.raises(DataError, match="do not hold the same results"):
        compare(runs, pool=True)


def test_a_comma_may_be_part_of_a_name(tmp_path):
    path = save(tmp_path / "a,b.json", results(0.5))
    assert compare([path]).columns[0].paths == (Path(path),)


def test_other_data_is_said_and_compared(tmp_path):
    a, b = (
        save(tmp_path / "a.json", results(0.5)),
        save(tmp_path / "b.json", results(0.2, fingerprint=PRINT | {"data": {"forget": "f01"}})),
    )
    comparison = compare([a, b])
    assert comparison.rows[0].best == 1
    assert comparison.notes == ("a and b were not measured alike: the forget data is not the same",)


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ({}, {"loss": 68}, False),  # one was measured without
        ({"loss": 68}, {"loss": 68, "lowercase": 60}, False),  # what only one has is of no other texts
        ({"loss": 68, "lowercase": 60}, {"loss": 60, "lowercase": 60}, True),
        ({"loss": 68, "lowercase": 60}, {"loss": 60, "lowercase": 68}, True),
    ],
)
def test_membership_of_other_texts_is_told_attack_by_attack(tmp_path, first, second, told):
    files = []
    for name, attacks in (("a", first), ("b", second)):
        content = results(0.5)
        entry = content["metrics"]["forget/probability"]
        content["metrics"] |= {f"membership/{attack}_auc": entry | {"n": n} for attack, n in attacks.items()}
        files.append(save(tmp_path / f"{name}.json", content))
    assert any("membership is of other texts" in note for note in compare(files).notes) == told


def test_results_of_an_adapter_that_the_run_has_no_more_are_said_to_be(tmp_path):
    run = write_run(tmp_path / "run", rows=4, steps=1, manifest={"adapter_fingerprint": "now"})
    for then, notes in (("now", 0), ("then", 1)):
        file = run / "results_after.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"fingerprint": {"adapter": then}}))
        stale = [note for note in compare([str(run)]).notes if "is of another adapter" in note]
        assert len(stale) == notes


def test_patterns_choose_metrics(tmp_path):
    content = results(0.5)
    content["metrics"] = dict.fromkeys(("forget/a", "retain/a", "all/b"), content["metrics"]["forget/probability"])
    path = save(tmp_path / "a.json", content)

    def shown(*patterns: str) -> list[str]:
        return [row.metric for row in compare([path], patterns=patterns).rows]

    assert shown() == ["forget/a", "retain/a", "all/b"]
    assert shown("retain/*") == ["retain/a"]
    assert shown("b") == ["all/b"]
    assert shown("*/b", "forget") == ["forget/a", "all/b"]
    with pytest.raises(
        ConfigError, match=r"--metrics zzz,y\*: matches no metric of these results \(they have forget/a"
    ):
        shown("zzz", "y*")


HOSTILE = "evil\x1b[31m\u202e\r\n\u2028|&%$#_{}~^\\<b>,\"'"


@pytest.fixture
def hostile() -> Comparison:
    """Names and notes as a file from anywhere may bring them."""
    cells = (cell(0.1, 0.2, 0.3), cell(0.6, 0.7, 0.8), None)
    columns = tuple(Column(f"{HOSTILE}{i}", (), {}) for i in range(3))
    wide = Row("x" * 130, (cell(1e-12, 2e-12, 3e-12), cell(-123456.0, -0.5, 99999.0), Estimate(math.nan)), 0)
    return Comparison(columns, (Row(HOSTILE, cells, 0), wide), (HOSTILE,))


@pytest.mark.parametrize("write", [as_table, as_csv, as_latex])
def test_nothing_from_data_can_steer_a_terminal(hostile, write):
    text = write(hostile)
    assert not [char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp") and char != "\n"]
    assert r"\x1b" in text.replace(r"\textbackslash{}", "\\")


def test_the_table_is_narrower_than_a_hundred_columns(hostile):
    assert max(map(len, as_table(hostile).splitlines())) < 100
    columns = tuple(Column(f"model {i}", (), {}) for i in range(7))
    rows = tuple(Row(f"forget/metric_{j}", tuple(cell(0.1, 0.2, 0.3) for _ in columns), None) for j in range(3))
    lines = as_table(Comparison(columns, rows, ())).splitlines()
    assert max(map(len, lines)) < 100
    assert [line.split("  ")[-1] for line in lines if line.startswith("metric")] == ["model 3", "model 6"]
    assert sum(line.startswith("forget/metric_0") for line in lines) == 2
    assert sum(line.count("0.200 [.100 .300]") for line in lines) == 21


@pytest.mark.parametrize("columns", range(2, 7))
def test_a_star_at_the_edge_takes_no_hundredth_column(columns: int) -> None:
    """Whatever the names and titles are, and whatever terminal it is written in."""
    for label in range(1, 31):
        names = tuple(Column("m" * label, (), {}) for _ in range(columns))
        cells = tuple(cell(0.1 * n, 0.1 * n + 0.01, 0.1 * n + 0.02, "higher") for n in range(columns))
        text = as_table(Comparison(names, (Row("x" * label, cells, columns - 1),), ()))
        assert max(map(len, text.splitlines())) < 100


def test_a_long_name_is_broken_behind_a_slash_and_not_where_there_is_room() -> None:
    name, one = "forget/exact_memorization/mismatched", cell(0.1, 0.2, 0.3)
    for count, told in ((2, [f"{name} ↓"]), (3, ["forget/exact_memorization/", "mismatched ↓"])):
        columns = tuple(Column(f"run {number}", (), {name: one}) for number in range(count))
        lines = as_table(Comparison(columns, (Row(name, (one,) * count, None),), ())).splitlines()
        assert [line.split("   ")[0].strip() for line in lines[1 : 1 + len(told)]] == told


def test_a_table_is_plain_text_in_whatever_terminal(hostile, monkeypatch):
    plain = as_table(hostile)
    for name, value in {"FORCE_COLOR": "1", "TERM": "dumb", "COLUMNS": "40", "JUPYTER_COLUMNS": "40"}.items():
        monkeypatch.setenv(name, value)
    assert as_table(hostile) == plain


def test_csv_has_every_number_in_full(hostile):
    first, *_ = csv.DictReader(io.StringIO(as_csv(hostile)))
    assert (first["value"], first["low"], first["high"], first["n"], first["best"]) == ("0.2", "0.1", "0.3", "10", "1")
    absent = list(csv.DictReader(io.StringIO(as_csv(hostile))))[2]
    assert (absent["value"], absent["runs"], absent["best"]) == ("", "0", "0")


@pytest.mark.parametrize("begins", ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)"])
def test_no_text_of_a_csv_is_a_formula(begins: str) -> None:
    table = Comparison((Column(begins, (), {}),), (Row(begins, (cell(-0.3, -0.2, -0.1),), None),), ())
    (line,) = csv.DictReader(io.StringIO(as_csv(table)))
    assert (line["metric"], line["name"], line["value"]) == (f"'{begins}", f"'{begins}", "-0.2")


def test_latex_is_escaped(hostile):
    text = as_latex(hostile)
    assert (
        r"\textbar{}\&\%\$\#\_\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}\textless{}b\textgreater{}" in text
    )
    assert r"\textbf{0.200} {\scriptsize [0.100, 0.300]}" in text
    assert r"$2.0 \cdot 10^{-12}$" in text
    assert all(line.count("&") - line.count(r"\&") == 3 for line in text.splitlines() if line.endswith(r" \\"))


def test_letters_of_any_script_stay():
    assert printable("Größe 模型") == "Größe 模型"
