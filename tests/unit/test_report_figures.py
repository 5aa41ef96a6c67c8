"""Figures and tables as files, and the numbers that they draw."""

import json
import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.colors
import numpy as np
import pytest
from scipy.integrate import trapezoid

from expunge.report import curves, figures, write_report
from expunge.report.details import hidden_names
from expunge.report.drawing import GROUP_COLORS, MARKERS, SET_COLORS, brief, inline_svg, save, slug, style
from expunge.report.groups import Cell, Column, Row, group_runs, read_columns, tabulate
from expunge.report.page import Drawings, draw, scales
from expunge.report.run_data import RunData, read_run
from expunge.report.scores import Score
from expunge.utils.roc import auc
from expunge.utils.text import printable
from report_runs import entry, write_run

SIGNATURES = {".png": b"\x89PNG\r\n", ".svg": b"<?xml", ".pdf": b"%PDF-"}


def texts(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.get_xticklabels() + axes.get_yticklabels()]


def test_every_figure_comes_as_png_svg_and_pdf(tmp_path, monkeypatch):
    saved: list[str] = []

    def first_alone(figure, stem: Path) -> list[tuple[Path, bytes]]:
        saved.append(stem.name)
        return save(figure, stem) if len(saved) == 1 else []

    monkeypatch.setattr("expunge.report.drawing.save", first_alone)
    run = write_run(tmp_path / "run", steps=20)
    write_report([run], figures=tmp_path / "figures")
    assert {*saved} >= {
        "course-forget", "course-retain-nll", "course-learning-rate", "losses-before", "losses-after",
        "losses-retrained", "membership-roc", "forget-against-utility", "metrics-memorization",
        "metrics-memorization-tasks", "metrics-membership", "metrics-utility",
    }  # fmt: skip
    for suffix, signature in SIGNATURES.items():
        path = tmp_path / "figures" / f"{saved[0]}{suffix}"
        assert path.read_bytes().startswith(signature), path
        assert path.stat().st_mode & 0o777 == 0o600
    pdf = (tmp_path / f"figures/{saved[0]}.pdf").read_bytes()
    assert b"/Type3" not in pdf  # journals refuse such fonts
    assert b"CreationDate" not in pdf


def log(run: Path, lines: list[dict]) -> list:
    """The group of a run with these lines in its log."""
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": i + 1, **line}) + "\n" for i, line in enumerate(lines))
    )
    return group_runs([read_run(run)])


def test_whatever_changes_is_drawn_and_what_does_not_is_named(tmp_path):
    lines = [
        {"loss": 3.0 - i, "a_term_of_tomorrow": 1.0 - i / 9, "groups": {"new_one": 2.0**i, "old_one": 1.5},
         "learning_rate": 0.01 / (1 + i), "absent_kl": 0.0, "tokens": 5}
        for i in range(3)
    ]  # fmt: skip
    lines[2] |= {"validation": {"auc": 0.6, "strange/kind": 2.0, "targets": {"auc": 0.5}}}
    groups = log(write_run(tmp_path / "run", scored=False), lines)
    with style():
        loss, inner, validation = curves.over_steps(groups)
    assert [plot.name for plot in loss.figures] == ["course-loss", "course-a-term-of-tomorrow", "course-learning-rate"]
    assert (inner.title, [plot.name for plot in inner.figures]) == ("Groups", ["course-groups-new-one"])
    assert inner.constant == "old one 1.500"
    assert (validation.title, [plot.name for plot in validation.figures]) == ("Validation", ["course-validation-auc"])
    assert validation.constant == "strange, kind 2.000"  # at one step alone
    line = inner.figures[0].figure.axes[0].lines[0]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2, 3], [1.0, 2.0, 4.0])


def test_a_target_is_drawn_into_the_figure_of_its_metric(tmp_path):
    """Constant or not."""
    constant = [{"validation": {"auc": 1 - i / 4, "targets": {"auc": 0.5}}} for i in range(3)]
    moving = [{"validation": {"auc": 1 - i / 4, "targets": {"auc": 0.5 + i / 10}}} for i in range(3)]
    run = write_run(tmp_path / "run", scored=False, manifest={"selection": {"best_step": 2}})
    for lines, aims in ((constant, [0.5, 0.5, 0.5]), (moving, [0.5, 0.6, 0.7])):
        with style():
            (panel,) = curves.over_steps(log(run, lines))
        (drawn,) = panel.figures
        metric, target, taken = drawn.figure.axes[0].lines
        assert list(metric.get_ydata()) == [1.0, 0.75, 0.5]
        assert list(target.get_ydata()) == pytest.approx(aims)
        assert list(taken.get_xdata()) == [2, 2]
        assert "target of run" in drawn.says


def test_axes_hold_their_dots_and_what_is_zero_looks_like_it(tmp_path):
    lines = [
        {"learning_rate": 0.004 / 3, "validation": {"drift": drift, "retained": 1.0 - i / 99, "said": 1e-5 * i}}
        for i, drift in enumerate((0.12, -0.02, 0.05))
    ]
    with style():
        loss, panel = curves.over_steps(log(write_run(tmp_path / "run", scored=False), lines))
    assert loss.constant == "learning rate 0.00133"
    ends = {plot.title: plot.figure.axes[0].get_ylim() for plot in panel.figures}
    assert (ends["drift"][0] < -0.02, ends["drift"][1] > 0.12) == (True, True)
    assert (ends["retained"][0], ends["retained"][1] > 1) == (0.0, True)
    assert ends["said"] == (0.0, curves.LEAST_AXIS)
    assert not panel.figures[0].figure.axes[0].lines[0].get_clip_on()


def test_the_scales_that_were_tried_are_drawn(tmp_path):
    run = write_run(tmp_path / "run", scored=False)
    group = group_runs([read_run(run)])[0]
    assert curves.over_scales(group) == []
    curve = [
        {"scale": scale, "auc": auc, "forget_nll": 2 - auc} for scale, auc in ((1.0, 0.6), (0.0, 1.0), (1.25, 0.4))
    ]
    told = {"scale": 1.25, "trained_alpha": 8.0, "selection_hmac": [], "curve": curve, "targets": {"auc": 0.5}}
    (run / "calibration.json").write_text(json.dumps(told))
    with style():
        (panel,) = curves.over_scales(group_runs([read_run(run)])[0])
    assert [plot.name for plot in panel.figures] == ["scale-auc", "scale-forget-nll"]
    line, target, taken = panel.figures[0].figure.axes[0].lines
    assert set(target.get_ydata()) == {0.5}
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([0.0, 1.0, 1.25], [1.0, 0.6, 0.4])
    assert list(taken.get_xdata()) == [1.25, 1.25]


def test_many_metrics_are_divided_over_figures(tmp_path, monkeypatch):
    monkeypatch.setattr("expunge.report.drawing.save", lambda figure, stem: [(stem.with_suffix(".svg"), b"")])
    monkeypatch.setattr("expunge.report.page.draw", lambda groups: Drawings())
    run = write_run(tmp_path / "run", metrics={f"utility/own{i}": entry(0.5) for i in range(90)})
    write_report([run], figures=tmp_path / "figures")
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert {"metrics-utility", "metrics-utility-2", "metrics-utility-3"} <= names
    assert "metrics-utility-4" not in names


def column(kind: str, *cells: Cell) -> Column:
    return Column(kind, kind, int(kind == "after"), {f"utility/m{i}": cell for i, cell in enumerate(cells)})


def rows_of(*columns: Column) -> list[Row]:
    keys = dict.fromkeys(key for col in columns for key in col.cells)
    return [Row(Score(0.0, key=key), [col.cells[key] for col in columns]) for key in keys]


@pytest.mark.parametrize("value", [1e300, -1e300, 1e-300, -5.0, 0.0])
def test_numbers_of_any_size_can_be_drawn(value):
    after = column("after", Cell(value))
    with style():
        assert inline_svg(figures.dots("utility", "Utility", [after], rows_of(after))).endswith("</svg>\n")


def test_the_same_numbers_give_the_same_files(tmp_path):
    """Whatever the user's settings are."""
    after, drawn = column("after", Cell(0.5, 0.4, 0.6, 3, each=[0.5])), []
    for theirs in ({}, {}, {"text.usetex": True, "figure.dpi": 50, "axes.labelsize": 30}):
        with mpl.rc_context(theirs), style():
            drawn.append(save(figures.dots("u", "U", [after], rows_of(after)).figure, tmp_path / "x"))
    assert drawn[0] == drawn[1] == drawn[2]


def test_the_membership_curve_has_the_area_of_the_one_auc():
    rng = np.random.default_rng(3)
    members, others = rng.integers(0, 9, 40) / 4, rng.integers(2, 11, 30) / 4  # many equal values
    fpr, tpr = figures.rates(-members, -others)
    assert trapezoid(tpr, fpr) == pytest.approx(auc(-members, -others))
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)


def test_histograms_do_not_tell_the_loss_of_a_single_text():
    def drawn(losses: list[float]):
        values = {("forget", "nll"): {f"t{index}": loss for index, loss in enumerate(losses)}}
        (found,) = figures.distributions(RunData(Path("r"), "r", {}, values={"after": values}))
        return found.says, found.figure.axes[0].patches[-1].get_xy()[:, 0].max()

    with style():
        five, again = drawn([0.5, 1.25, 1.5, 2.0, 3.21]), drawn([0.5, 1.24, 1.51, 2.0, 3.21])
        assert five == again, "neither the middle one nor the highest one"
        assert five[1] == 3.5
        assert "mean 1.500, 2" in drawn([1.41, 1.44])[0], "few texts: to half a nat"


def test_the_scores_of_the_attack_itself_come_before_losses():
    values = {
        ("member", "membership/loss"): dict(zip("abcd", (2.0, 1.0, 2.0, 2.0), strict=True)),
        ("nonmember", "membership/loss"): dict.fromkeys("efgh", 0.0),
        ("forget", "document_nll"): dict.fromkeys("abcd", 9.0),
        ("holdout", "document_nll"): dict.fromkeys("efgh", 1.0),
    }
    losses = {key: numbers for key, numbers in values.items() if key[1] == "document_nll"}
    before = {("forget", "document_nll"): values["forget", "document_nll"], ("holdout", "nll"): {"c": 1.0}}
    run = RunData(Path("r"), "r", {}, values={"after": values, "before": before, "retrained": losses})
    assert [list(side) for side in figures.attack_scores(run, "after")] == [[2.0, 1.0, 2.0, 2.0], [0.0] * 4]
    assert [list(side) for side in figures.attack_scores(run, "retrained")] == [[-9.0] * 4, [-1.0] * 4]
    assert figures.attack_scores(run, "before") is None
    few = values | {("member", "membership/loss"): {"a": 2.0}}  # rounded, beside others that are not
    run = RunData(Path("r"), "r", {}, values={"after": {key: few[key] for key in list(few)[:2]}})
    assert figures.attack_scores(run, "after") is None


def test_the_running_mean_is_that_of_the_window():
    values = np.random.default_rng(0).normal(size=60)
    mean = curves.running_mean(values)
    half = curves.SMOOTH // 2
    slow = [values[max(0, i - half) : i + half + 1].mean() for i in range(60)]
    np.testing.assert_allclose(mean, slow)


def test_every_run_and_reference_is_a_point(tmp_path):
    runs = [write_run(tmp_path / f"seed{seed}", seed=seed) for seed in range(2)]
    other = write_run(tmp_path / "other", seed=9, settings={"epochs": 3})
    groups = group_runs([read_run(path) for path in (*runs, other)])
    with style():
        drawn, points = figures.tradeoff(groups)
    assert [name for name, *_ in points] == ["before", "retrained", "seed0", "seed1", "other"]
    places = {name: place for name, *place in points}
    assert places["before"][0] == pytest.approx((0.99 + 1.0 + 0.97) / 3)  # the mean of the metrics over all tasks
    assert len(drawn.figure.axes[0].lines) == len(points)
    assert all(f"{name}: " in drawn.says for name in places)


def test_models_are_placed_by_the_metrics_that_all_have(tmp_path):
    """A task that only the unlearned model was asked is no loss."""
    run = write_run(tmp_path / "run")
    with style():
        before = figures.tradeoff(group_runs([read_run(run)]))[1]
    path = run / "results_after.json"
    results = json.loads(path.read_text())
    results["metrics"]["all/hellaswag_acc"] = entry(0.3)
    path.write_text(json.dumps(results))
    with style():
        assert figures.tradeoff(group_runs([read_run(run)]))[1] == before


def test_runs_with_other_origins_are_no_seeds_of_one_another(tmp_path):
    runs = [write_run(tmp_path / "one"), write_run(tmp_path / "two", seed=1, manifest={"origin_sha256": "ab"})]
    assert len(group_runs([read_run(run) for run in runs])) == 2


def test_a_folders_name_in_the_settings_hides_no_words(tmp_path):
    for data, said in (("./", "the base"), ("models/base", "the base"), ("texts/one.jsonl", "one row of one.jsonl")):
        run = read_run(write_run(tmp_path / data.replace("/", "-"), settings={"forget": data}))
        assert hidden_names(run)(said) == said.replace("one.jsonl", "the forget file")


def test_without_scores_there_is_nothing_to_place(tmp_path):
    assert figures.tradeoff(group_runs([read_run(write_run(tmp_path / "run", scored=False))])) == (None, [])


def test_a_copy_of_a_run_is_no_second_run(tmp_path):
    runs = [read_run(write_run(tmp_path / name, seed=int(name == "other"))) for name in ("other", "run", "copy")]
    for run in runs:
        run.results["after"]["fingerprint"] = {"adapter": "a" if run.name == "other" else "b"}
    (group,) = group_runs(runs)
    assert [run.name for run in group.runs] == ["other", "run"]
    assert runs[1].warnings == ["copy is left out: it is of the same adapter."]


def test_a_group_is_named_where_its_first_run_lacks_the_file(tmp_path):
    runs = [write_run(tmp_path / f"run{seed}", seed=seed) for seed in range(2)]
    other = write_run(tmp_path / "other", seed=0, settings={"learning_rate": 1.0})
    (runs[0] / "results_after.parquet").unlink()
    (runs[0] / "metrics.jsonl").unlink()
    groups = group_runs([read_run(run) for run in (*runs, other)])
    assert [len(group.runs) for group in groups] == [2, 1]
    with style():
        roc = figures.membership_curves(groups)
        courses = [drawn for panel in curves.over_steps(groups) for drawn in panel.figures]
    assert "another run" not in roc.says
    for drawn in (roc, courses[0]):
        _, labels = drawn.figure.axes[0].get_legend_handles_labels()
        assert any(label.startswith(groups[0].letter) for label in labels), labels


def test_axes_are_labelled_with_units_and_legends_cover_no_data(tmp_path):
    runs = [read_run(write_run(tmp_path / f"run{seed}", seed=seed, steps=60)) for seed in range(2)]
    groups = group_runs(runs)
    columns = read_columns(groups)
    drawn = draw(groups).all
    with style():
        drawn += [figures.dots(name, name, columns, rows) for name, rows in tabulate(columns, runs).items()]
        for plot in drawn:
            (axes,) = plot.figure.axes
            assert axes.get_xlabel(), plot.name
            assert axes.get_ylabel() or plot.name.startswith("metrics"), plot.name
            if plot.name.startswith(("course-forget", "course-validation-forget-nll", "losses", "documents")):
                assert "nats per token" in axes.get_xlabel() + axes.get_ylabel()
            plot.figure.canvas.draw()
            for legend in plot.figure.legends:
                padding = 3  # pixels around the legend's signs and words
                assert legend.get_window_extent().y0 >= axes.get_window_extent().y1 - padding, plot.name
                assert legend.get_window_extent().x1 <= plot.figure.bbox.x1 + 1, plot.name


def _seen(color: str, matrix: list[list[float]]) -> np.ndarray:
    """A colour as CIELAB after a matrix in linear RGB."""
    rgb = np.array(matplotlib.colors.to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(matrix) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    f = np.cbrt(np.maximum(xyz / [0.9505, 1.0, 1.089], 1e-6))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


SIGHT = {
    "normal": np.eye(3).tolist(),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
"""Machado, Oliveira and Fernandes 2009, severity 1.0."""


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_are_told_apart_by_colour_blind_readers(sight):
    """Those of sets, and those of methods together with their marker: no two alike within 10 units of CIELAB."""
    seen = [_seen(color, SIGHT[sight]) for color in SET_COLORS.values()]
    assert min(np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]) > 10
    signs = list(zip((_seen(color, SIGHT[sight]) for color in GROUP_COLORS), MARKERS, strict=True))
    for i, (a, marker) in enumerate(signs):
        for b, other in signs[:i]:
            assert np.linalg.norm(a - b) > 10 or marker != other


@pytest.mark.parametrize("color", [*GROUP_COLORS, *SET_COLORS.values()])
def test_colours_stand_out_from_white(color):
    rgb = np.array(matplotlib.colors.to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    assert 1.05 / (luminance + 0.05) >= 3  # WCAG 2.1, 1.4.11: graphical objects


def test_rows_of_other_sizes_get_an_axis_of_their_own_or_none():
    unit = Row(Score(0.0, key="utility/a"), [Cell(0.5, 0.4, 1.0)])
    loss = Row(Score(0.0, key="utility/b"), [Cell(4.0, 3.0, 5.3)])
    huge = Row(Score(0.0, key="utility/c"), [Cell(9e4)])
    first, second = scales("utility", [unit, loss], whole=True)
    assert (first.rows, first.low, first.high) == ([unit], 0.0, 1.0)
    assert (second.rows, second.low, second.high) == ([loss], 0.0, 6.0)
    assert first.at(0.0) == "3.00%"
    assert first.at(1.0) == "97.00%"
    (mixed,) = scales("utility", [loss, huge], whole=True)
    assert mixed.low is None
    assert scales("utility", [unit], whole=False) == []


def test_names_in_figures_are_short_visible_and_safe_for_files():
    assert brief("a" * 40) == "a" * 25 + "…"
    assert brief("a\n b\u202ec") == "a b\\u202ec"
    assert slug("../../etc/Passwd <x>") == "etc-passwd-x"
    assert slug("日本") == "figure"
    assert printable("a\x1b[2J\u200b") == "a\\x1b[2J\\u200b"


def test_names_with_dollars_are_no_formulas(tmp_path):
    name = "$\\frac{1}{0}$"
    after = column("after", Cell(0.5))
    with style():
        drawn = figures.dots("u", "u", [after], [Row(Score(0.5, key=f"utility/{name}"), [Cell(0.5)])])
        svg = save(drawn.figure, tmp_path / "x")[1][1].decode()
    assert name in texts(drawn.figure)
    assert name in re.sub(r"<[^>]+>", "", svg)
