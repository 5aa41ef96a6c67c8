"""The report's figures. Each function draws one and says in words what it shows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from expunge.report.collect import STEP_FIELDS, RunData
from expunge.report.comparison import Column, Group, Row, of_run
from expunge.report.drawing import (
    DASHES,
    GROUP_COLORS,
    INK,
    MARKERS,
    MUTED,
    SET_COLORS,
    WIDTH,
    brief,
    canvas,
    legend,
    slug,
    whole_numbers,
)
from expunge.report.readings import Reading, kept, knowledge, number

TERMS = {
    "npo": ("Forget term", "pushed (nats per token)"),
    "rest_kl": ("Others term", "others' KL (nats per token)"),
    "retain_nll": ("Retain term", "retain NLL (nats per token)"),
    "retain_kl": ("Divergence term", "retain KL (nats per token)"),
    "anchor_kl": ("Anchor term", "anchor KL (nats per token)"),
    "instead_nll": ("Term of what to say instead", "NLL (nats per token)"),
}
"""Logged term -> title and axis; a term that a run does not have is logged as 0."""
SMOOTH = 15
"""Points of the running mean over a noisy curve."""
MOST_SIGNALS = 8
MOST_POINTS = 400
"""Points of a drawn curve: more than a figure can show make the page heavy."""


Curve = tuple[int, Group, RunData, np.ndarray, np.ndarray]
"""Number of the group, the group, its run, steps and values of a logged number."""


@dataclass(frozen=True)
class Drawn:
    """A figure with its words.

    Attributes:
        name: Name of the file, and prefix of its ids in the page.
        title: Its heading.
        says: What it shows, for those who do not see it.
        figure: The drawing.
    """

    name: str
    title: str
    says: str
    figure: Figure


def courses(groups: Sequence[Group]) -> list[Drawn]:
    """The loss terms over the steps, and whatever signals were logged beside them."""
    logged = {name: _curves(groups, name) for name in used_terms(groups)}
    extra = {
        key
        for group in groups
        for run in group.runs
        for step in run.steps
        for key, value in step.items()
        if key not in STEP_FIELDS and key not in TERMS and number(value) is not None
    }
    titles = {**TERMS, **{key: (key.replace("_", " ").capitalize(), key.replace("_", " ")) for key in sorted(extra)}}
    shown = logged | {key: _curves(groups, key) for key in sorted(extra)[:MOST_SIGNALS]}
    return [
        _course(groups, f"course-{i}-{slug(key)}", curves, *titles[key])
        for i, (key, curves) in enumerate(shown.items(), 1)
    ]


def _course(groups: Sequence[Group], name: str, curves: Sequence[Curve], title: str, ylabel: str) -> Drawn:
    figure, axes = canvas("optimizer step", brief(ylabel, 40))
    says = []
    for index, group, run, steps, values in curves:
        color = GROUP_COLORS[index % len(GROUP_COLORS)]
        if len(groups) == 1 and len(group.runs) == 1 and len(values) > 2 * SMOOTH:
            axes.plot(*_thin(steps, values), color=color, linewidth=0.8, alpha=0.35)
        mean = _running_mean(values) if len(values) > 2 * SMOOTH else values
        first = run is group.runs[0]
        axes.plot(
            *_thin(steps, mean),
            color=color,
            linewidth=1.6,
            linestyle=DASHES[index % len(DASHES)],
            marker="o" if len(values) < 30 else None,
            markersize=3.5,
            label=_named(group) if first and len(groups) > 1 else None,
        )
        says.append(f"{run.name}: from {values[0]:.3g} at step {steps[0]} to {values[-1]:.3g} at step {steps[-1]}")
    axes.set_ylim(bottom=min(0.0, *(float(values.min()) for *_, values in curves)))
    whole_numbers(axes)
    legend(axes, columns=2)
    return Drawn(name, brief(title, 40), f"{ylabel} over the optimizer steps. " + _list(says), figure)


def _named(group: Group) -> str:
    return f"{group.letter}: {brief(group.title, 40)}"


def used_terms(groups: Sequence[Group]) -> list[str]:
    """The terms that any run has."""
    steps = [step for group in groups for run in group.runs for step in run.steps]
    return [name for name in TERMS if any(step.get(name) for step in steps)]


def _curves(groups: Sequence[Group], key: str) -> list[Curve]:
    found = []
    for index, group in enumerate(groups):
        for run in group.runs:
            pairs = [(step["step"], value) for step in run.steps if (value := number(step.get(key))) is not None]
            if pairs:
                steps, values = (np.array(column) for column in zip(*pairs, strict=True))
                found.append((index, group, run, steps, values))
    return found


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over a centred window that shrinks at both ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - SMOOTH // 2, 0), np.minimum(index + SMOOTH // 2 + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    every = max(1, len(steps) // MOST_POINTS)
    return steps[::every], values[::every]


# --- distributions and membership ----------------------------------------------------------------


def distributions(run: RunData) -> list[Drawn]:
    """How likely texts are to each model: completions of every set, and whole documents, forgotten and unseen."""
    return [
        *_histograms(run, "nll", {name: (name,) for name in SET_COLORS}, "Losses", "completion"),
        *_histograms(
            run, "document_nll", {"forget": ("member", "forget"), "holdout": ("nonmember", "holdout")}, "Documents",
            "document",
        ),
    ]  # fmt: skip


def _histograms(run: RunData, metric: str, sets: Mapping[str, Sequence[str]], title: str, unit: str) -> Iterator[Drawn]:
    """One figure for each model, on one axis for all of them."""
    losses: dict[str, dict[str, np.ndarray]] = {}
    for role, values in run.values.items():
        for name, stored in sets.items():
            own = next((values[key] for key in ((side, metric) for side in stored) if values.get(key)), None)
            if own:
                losses.setdefault(role, {})[name] = np.array(list(own.values()))
    if not losses:
        return
    highest = max(float(own.max()) for found in losses.values() for own in found.values())
    bins = np.linspace(0, max(highest, 0.1) * 1.02, 28)
    for role, found in losses.items():
        figure, axes = canvas(f"mean NLL of a {unit} (nats per token)", f"share of the {unit}s")
        for name, own in found.items():
            color, dash = SET_COLORS[name], DASHES[list(SET_COLORS).index(name)]
            weights = np.full(len(own), 1 / len(own))
            axes.hist(own, bins, weights=weights, color=color, alpha=0.22)
            axes.hist(
                own, bins, weights=weights, histtype="step", color=color, linestyle=dash, linewidth=1.5,
                label=f"{name} ({len(own)})",
            )  # fmt: skip
        legend(axes)
        says = [f"{name}: median {np.median(own):.3g}, {len(own)} {unit}s" for name, own in found.items()]
        text = f"Histogram of the mean NLL (nats per token) of each {unit}, {role}. " + _list(says)
        yield Drawn(f"{slug(title)}-{role}", f"{title}, {role}", text, figure)


def membership_curves(groups: Sequence[Group]) -> Drawn | None:
    """ROC of the loss attack: texts of the forget set against unseen ones."""
    curves: list[tuple[str, str, Any, np.ndarray, np.ndarray]] = []
    first = next((run for group in groups for run in group.runs if run.values), None)
    if first is None:
        return None
    for role, color, dash in (("before", MUTED, ":"), ("reference", INK, "--")):
        if role in first.values and (curve := roc(first, role)):
            curves.append((role, color, dash, *curve))
    for index, group in enumerate(groups):
        for run in group.runs:
            if "after" in run.values and (curve := roc(run, "after")):
                name = "after" if len(groups) == 1 else _named(group)
                color = GROUP_COLORS[index % len(GROUP_COLORS)]
                curves.append((name if run is group.runs[0] else "", color, "-", *curve))
    if not curves:
        return None
    figure, axes = canvas("share of unseen texts flagged", "share of forgotten texts flagged", height=WIDTH * 0.8)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
    says = []
    for name, color, dash, fpr, tpr in curves:
        area = float(np.trapezoid(tpr, fpr))
        label = f"{name} ({area:.2f})" if name else None
        axes.plot(fpr, tpr, color=color, linestyle=dash, linewidth=1.6, label=label)
        says.append(f"{name or 'another run'}: AUC {area:.2f}")
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    legend(axes, columns=2)
    return Drawn("membership-roc", "Membership attack by loss (AUC)", "ROC of the loss attack. " + _list(says), figure)


def roc(run: RunData, role: str) -> tuple[np.ndarray, np.ndarray] | None:
    """False and true positive rates of the loss attack; None where its scores were not kept."""
    values = run.values[role]
    for metric, sign in (("membership/loss", 1), ("nll", -1)):
        for inside, outside in (("member", "nonmember"), ("forget", "holdout")):
            members, others = values.get((inside, metric)), values.get((outside, metric))
            if members and others:
                scores = sign * np.concatenate([list(members.values()), list(others.values())])
                member = np.arange(len(scores)) < len(members)
                return _roc(scores, member)
    return None


def _roc(scores: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rates at every threshold between two different scores; equal scores are flagged together."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)
    hits = np.cumsum(member[order])[last] / member.sum()
    alarms = np.cumsum(~member[order])[last] / (~member).sum()
    return np.insert(alarms, 0, 0.0), np.insert(hits, 0, 0.0)


# --- forget against utility ----------------------------------------------------------------------


def tradeoff(groups: Sequence[Group]) -> tuple[Drawn, list[tuple[str, float, float]]] | None:
    """Every run, checkpoint, untouched model and reference as a point; the points are given back for the table."""
    scored = [run for group in groups for run in group.runs if "after" in run.results]
    points = _scored_points(groups) if scored else _loss_points(groups)
    if not points:
        return None
    if scored:
        x, y = "mean of the forget metrics (← forgotten)", "mean of the scores to keep (kept ↑)"
    else:
        x, y = "loss of forget texts (nats per token, forgotten →)", "loss of retain texts (nats per token, ↓ kept)"
    figure, axes = canvas(x, y, height=WIDTH * 0.8)
    seen = set()
    for title, _, color, marker, filled, (left, right) in points:
        axes.plot(
            left,
            right,
            marker=marker,
            markersize=8 if filled else 7,
            markerfacecolor=color if filled else "none",
            markeredgecolor=color,
            markeredgewidth=1.5,
            linestyle="none",
            label=None if title in seen else title,
            clip_on=False,
        )
        seen.add(title)
    axes.margins(0.08)
    if scored:
        heights = [place[1] for *_, place in points]
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(max(-0.03, min(*heights, 0.8) - 0.05), 1.03)  # a narrow range would make small losses look large
    legend(axes, columns=3 if len(groups) == 1 else 2)
    table = [(name, *own) for _, name, _, _, _, own in points]
    says = _list(f"{name}: {own[0]:.3g} and {own[1]:.3g}" for name, *own in table)
    return Drawn("forget-against-utility", "Forgetting against keeping", f"{x} against {y}. {says}", figure), table


Point = tuple[str, str, str, str, bool, tuple[float, float]]
"""Legend, name, colour, marker, filled, place."""


def _scored_points(groups: Sequence[Group]) -> list[Point]:
    points: list[Point] = []
    for index, group in enumerate(groups):
        color, marker = GROUP_COLORS[index % len(GROUP_COLORS)], MARKERS[index % len(MARKERS)]
        title = "after" if len(groups) == 1 else _named(group)
        for run in group.runs:
            found = of_run(run)
            for name, results in run.checkpoints.items():
                if place := _place(of_run(RunData(run.path, name, {}, results={"after": results}))["after"]):
                    points.append(("checkpoints", f"{run.name}, {name}", color, marker, False, place))
            for role, drawn, sign in (("before", MUTED, "o"), ("reference", INK, "D")):
                place = _place(found.get(role, {}))
                if place and not any(point[5] == place and point[0] == role for point in points):
                    points.append((role, role, drawn, sign, role == "reference", place))
            if place := _place(found.get("after", {})):
                points.append((title, run.name, color, marker, True, place))
    return points


def _loss_points(groups: Sequence[Group]) -> list[Point]:
    points: list[Point] = []
    for index, group in enumerate(groups):
        color, marker = GROUP_COLORS[index % len(GROUP_COLORS)], MARKERS[index % len(MARKERS)]
        title = "after" if len(groups) == 1 else _named(group)
        for run in group.runs:
            for role, fill in (("before", False), ("after", True)):
                pairs = [run.losses.get(name, {}).get(role) for name in ("forget", "retain")]
                place = [value for pair in pairs if (value := number(pair)) is not None]
                if len(place) == 2:
                    name = f"{run.name}, {role}"
                    own = ("before", name, MUTED, "o") if role == "before" else (title, name, color, marker)
                    points.append((*own, fill, (place[0], place[1])))
    return points


def _place(found: dict[str, Reading]) -> tuple[float, float] | None:
    """Mean of what is still known of the forget set and mean of what is kept, of metrics between 0 and 1."""
    pair = []
    for choose in (knowledge, kept):
        values = [r.value for r in choose(found).values() if r.value is not None and 0 <= r.value <= 1 and not r.task]
        values = values or [r.value for r in choose(found).values() if r.value is not None and 0 <= r.value <= 1]
        if not values:
            return None
        pair.append(sum(values) / len(values))
    return pair[0], pair[1]


# --- dots and bars -------------------------------------------------------------------------------


def dots(family: str, title: str, columns: Sequence[Column], rows: Sequence[Row]) -> Drawn:
    """One family's readings as dots with bars on one axis: the figure of the table, as a file."""
    height = 1.3 + 0.32 * len(rows)
    figure, axes = canvas(
        "value (bar: 95% interval; of several runs, one standard deviation)", "", width=6.4, height=height
    )
    step = 0.5 / max(1, len(columns))
    for i, column in enumerate(columns):
        color, marker = _look(column)
        ys, xs, bars = [], [], []
        for y, row in enumerate(rows):
            cell = row.cells[i]
            if cell is not None:
                ys.append(y + (i - (len(columns) - 1) / 2) * step)
                xs.append(cell.value)
                low, high = (
                    (cell.low, cell.high) if cell.low is not None and cell.high is not None else (cell.value,) * 2
                )
                bars.append((max(0.0, cell.value - low), max(0.0, high - cell.value)))
        if xs:
            hollow = "none" if column.kind == "before" else color
            axes.errorbar(
                xs, ys, xerr=np.array(bars).T, fmt=marker, color=color, markerfacecolor=hollow, markersize=5.5,
                elinewidth=1.3, label=brief(column.title),
            )  # fmt: skip
    axes.set_yticks(range(len(rows)), [brief(row.label, 44) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    legend(axes, columns=4)
    return Drawn(f"metrics-{slug(family)}", title, title, figure)


def _look(column: Column) -> tuple[str, str]:
    if column.kind == "before":
        return MUTED, "o"
    if column.kind == "reference":
        return INK, "D"
    return GROUP_COLORS[(column.color - 1) % len(GROUP_COLORS)], MARKERS[(column.color - 1) % len(MARKERS)]


def _list(parts: Any, most: int = 12) -> str:
    parts = list(parts)
    rest = f"; and {len(parts) - most} more" if len(parts) > most else ""
    return "; ".join(islice(parts, most)) + rest + "."
