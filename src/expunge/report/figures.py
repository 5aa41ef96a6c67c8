"""The report's figures of scores. Each function draws one and says in words what it shows."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation.earlier import texts_in
from expunge.report.drawing import (
    DASHES,
    GROUP_COLORS,
    INK,
    MARKERS,
    MUTED,
    SET_COLORS,
    WIDTH,
    Drawn,
    brief,
    canvas,
    legend,
    listed,
    slug,
)
from expunge.report.groups import Column, Group, Row
from expunge.report.run_data import RunData
from expunge.report.scores import Score, kept, knowledge
from expunge.utils import coarse
from expunge.utils.coarse import HALF, few
from expunge.utils.roc import auc
from expunge.utils.text import show_number

Array = NDArray[np.float64]
SPREAD_BINS = 28
LOOKS = {"before": (MUTED, "o"), "retrained": (INK, "D")}
"""Colour and marker of the models beside the runs."""


class Point(NamedTuple):
    """A model in the figure of forgetting against keeping: legend, name, colour, marker, filled, place."""

    title: str
    name: str
    color: str
    marker: str
    filled: bool
    place: tuple[float, float]


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
    losses: dict[str, dict[str, Array]] = {}
    rounded: set[tuple[str, str]] = set()
    for role, values in run.values.items():
        for name, stored in sets.items():
            kept_values = next((values[side, metric] for side in stored if values.get((side, metric))), None)
            if kept_values:
                losses.setdefault(role, {})[name] = np.array(list(kept_values.values()))
                if few({name: texts_in(kept_values)}):
                    rounded.add((role, name))
    if not losses:
        return
    highest = max(float(nlls.max()) for found in losses.values() for nlls in found.values())
    end = HALF * (highest // HALF + 1)  # not where the loss of a single text is
    bins = list(np.linspace(0, end, SPREAD_BINS))
    for role, found in losses.items():
        figure, axes = canvas(f"mean NLL of a {unit} (nats per token)", f"share of the {unit}s")
        for name, nlls in found.items():
            color, dash = SET_COLORS[name], DASHES[list(SET_COLORS).index(name)]
            weights = np.full(len(nlls), 1 / len(nlls))
            axes.hist(nlls, bins, weights=weights, color=color, alpha=0.22)
            axes.hist(
                nlls, bins, weights=weights, histtype="step", color=color, linestyle=dash, linewidth=1.5,
                label=f"{name} ({len(nlls)})",
            )  # fmt: skip
        legend(axes)
        means = {
            name: coarse.nats(nlls.mean()) if (role, name) in rounded else nlls.mean() for name, nlls in found.items()
        }
        says = [f"{name}: mean {show_number(means[name])}, {len(nlls)} {unit}s" for name, nlls in found.items()]
        text = f"Histogram of the mean NLL (nats per token) of each {unit}, {role}. " + listed(says)
        yield Drawn(f"{slug(title)}-{role}", f"{title}, {role}", text, figure)


def membership_curves(groups: Sequence[Group]) -> Drawn | None:
    """ROC of the loss attack: texts of the forget set against unseen ones."""
    curves: list[tuple[str, str, Any, tuple[Array, Array]]] = []
    named: set[str] = set()
    first = next((run for group in groups for run in group.runs if run.values), None)
    for role, color, dash in (("before", MUTED, ":"), ("retrained", INK, "--")):
        if first and (sides := attack_scores(first, role)):
            curves.append((first.title(role), color, dash, sides))
    for index, group in enumerate(groups):
        for run in group.runs:
            if sides := attack_scores(run, "after"):
                name = "after" if len(groups) == 1 else _named(group)
                color, _ = _look(index)
                curves.append(("" if group.letter in named else name, color, "-", sides))
                named.add(group.letter)
    if not curves:
        return None
    figure, axes = canvas("share of unseen texts flagged", "share of forgotten texts flagged", height=WIDTH * 0.8)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
    says = []
    for name, color, dash, sides in curves:
        area = auc(*sides)
        label = f"{name} ({area:.2f})" if name else None
        axes.plot(*rates(*sides), color=color, linestyle=dash, linewidth=1.6, label=label)
        says.append(f"{name or 'another run'}: AUC {area:.2f}")
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    legend(axes, columns=2)
    return Drawn("membership-roc", "Membership attack by loss (AUC)", "ROC of the loss attack. " + listed(says), figure)


def attack_scores(run: RunData, role: str) -> tuple[Array, Array] | None:
    """Scores of the loss attack on members and on unseen texts; None where they were not kept, or are rounded."""
    values = run.values.get(role, {})
    for metric, sign in (("membership/loss", 1), ("document_nll", -1)):
        for inside, outside in (("member", "nonmember"), ("forget", "holdout")):
            members, others = values.get((inside, metric)), values.get((outside, metric))
            if members and others and not few({inside: texts_in(members), outside: texts_in(others)}):
                return sign * np.array(list(members.values())), sign * np.array(list(others.values()))
    return None


def rates(members: Array, others: Array) -> tuple[Array, Array]:
    """False and true positive rates at every threshold; equal scores are flagged together."""
    thresholds = np.unique(np.concatenate([members, others]))[::-1]
    alarms, hits = (
        np.concatenate([[0.0], (len(side) - np.searchsorted(np.sort(side), thresholds, "left")) / len(side)])
        for side in (others, members)
    )
    return alarms, hits


def tradeoff(groups: Sequence[Group]) -> tuple[Drawn | None, list[tuple[str, float, float]]]:
    """Every scored run, untouched model and reference as a point; the points are given back for the table."""
    points = list(_points(groups))
    if not points:
        return None, []
    x, y = "mean of the forget metrics (← forgotten)", "mean of the scores to keep (kept ↑)"
    figure, axes = canvas(x, y, height=WIDTH * 0.8)
    seen: set[str] = set()
    for point in points:
        axes.plot(
            *point.place,
            marker=point.marker,
            markersize=8 if point.filled else 7,
            markerfacecolor=point.color if point.filled else "none",
            markeredgecolor=point.color,
            markeredgewidth=1.5,
            linestyle="none",
            label=None if point.title in seen else point.title,
            clip_on=False,
        )
        seen.add(point.title)
    axes.margins(0.08)
    lowest = min(0.8, *(point.place[1] for point in points))
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(max(-0.03, lowest - 0.05), 1.03)  # a narrow range would make small losses look large
    legend(axes, columns=3 if len(groups) == 1 else 2)
    table = [(point.name, *point.place) for point in points]
    says = listed([f"{name}: {show_number(left)} and {show_number(right)}" for name, left, right in table])
    return Drawn("forget-against-utility", "Forgetting against keeping", f"{x} against {y}. {says}", figure), table


def _points(groups: Sequence[Group]) -> Iterator[Point]:
    drawn: set[tuple[str, tuple[float, float]]] = set()
    sides = [
        [{*choose(scores)} for choose in (knowledge, kept)]
        for group in groups
        for run in group.runs
        for scores in run.scores.values()
    ]
    shared = {key for side in zip(*filter(all, sides), strict=True) for key in set.intersection(*side)}
    for index, group in enumerate(groups):
        title = "after" if len(groups) == 1 else _named(group)
        for run in group.runs:
            for role, look in LOOKS.items():
                place = _place(run.scores.get(role, {}), shared)
                if place and (role, place) not in drawn:
                    drawn.add((role, place))
                    yield Point(run.title(role), run.title(role), *look, role == "retrained", place)
            if place := _place(run.scores.get("after", {}), shared):
                yield Point(title, run.name, *_look(index), True, place)


def _look(index: int) -> tuple[str, str]:
    """Colour and marker of a group, by its place."""
    return GROUP_COLORS[index % len(GROUP_COLORS)], MARKERS[index % len(MARKERS)]


def _named(group: Group) -> str:
    return f"{group.letter}: {brief(group.title, 40)}"


def _place(scores: Mapping[str, Score], shared: Collection[str]) -> tuple[float, float] | None:
    """Mean of what is still known of the forget set and mean of what is kept, of the metrics between 0 and 1 that all
    models have.
    """
    pair = []
    for choose in (knowledge, kept):
        found = [score for key, score in choose(scores).items() if key in shared and 0 <= score.value <= 1]
        values = [score.value for score in found if not score.task] or [score.value for score in found]
        if not values:
            return None
        pair.append(sum(values) / len(values))
    return pair[0], pair[1]


def dots(family: str, title: str, columns: Sequence[Column], rows: Sequence[Row]) -> Drawn:
    """One family's readings as dots with bars on one axis: the figure of the table, as a file."""
    height = 1.3 + 0.32 * len(rows)
    figure, axes = canvas(
        "value (bar: 95% interval; of several runs, one standard deviation)", "", width=6.4, height=height
    )
    step = 0.5 / max(1, len(columns))
    for i, column in enumerate(columns):
        color, marker = LOOKS.get(column.kind) or _look(column.color - 1)
        ys, xs, bars = [], [], []
        for y, row in enumerate(rows):
            cell = row.cells[i]
            if cell.known:
                ys.append(y + (i - (len(columns) - 1) / 2) * step)
                xs.append(cell.value)
                low, high = (cell.low, cell.high) if cell.bounded else (cell.value, cell.value)
                bars.append((max(0.0, cell.value - low), max(0.0, high - cell.value)))
        if xs:
            hollow = "none" if column.kind == "before" else color
            axes.errorbar(
                xs, ys, xerr=np.array(bars).T, fmt=marker, color=color, markerfacecolor=hollow, markersize=5.5,
                elinewidth=1.3, label=brief(column.title),
            )  # fmt: skip
    axes.set_yticks(range(len(rows)), [brief(row.score.label, 44) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    legend(axes, columns=4)
    return Drawn(f"metrics-{slug(family)}", title, title, figure)
