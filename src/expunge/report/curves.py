"""What changed while a run went on, and over the scales of its adapter: every logged number, whatever its name.

A number that stands in `targets` under the name of another is drawn into that one's figure, dashed.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from expunge.report.drawing import DASHES, GROUP_COLORS, INK, Drawn, brief, canvas, legend, listed, slug, whole_numbers
from expunge.report.groups import Group
from expunge.report.run_data import RunData
from expunge.report.scores import number, spelled
from expunge.utils.text import show_number

NOT_DRAWN = ("step", "epoch", "tokens")
"""Counts, which tell nothing over the steps."""
TARGETS = "targets"
SMOOTH = 15
"""Points of the running mean over a noisy curve."""
LEAST_AXIS = 0.01
"""An axis of shares reaches at least this far: what is told as 0.000 looks like it."""
MOST_POINTS = 400
"""Points of a drawn curve: more than a figure can show make the page heavy."""

Array = NDArray[np.float64]
Lines = Sequence[Mapping[str, Any]]


class Curve(NamedTuple):
    """One run's values of a logged number: number of the group, the group, the run, places and values."""

    place: int
    group: Group
    run: RunData
    at: Array
    values: Array


class Over(NamedTuple):
    """What numbers are drawn over: its name in a line, the label of the axis, and the place that was taken."""

    name: str
    label: str
    taken: float | None


class Panel(NamedTuple):
    """Figures that belong together, and what did not change and needs none."""

    title: str
    figures: list[Drawn]
    constant: str


def over_steps(groups: Sequence[Group]) -> list[Panel]:
    """The loss, its terms and the learning rate; then everything else that was logged, by its name."""
    lines = [(index, group, run, run.steps) for index, group in enumerate(groups) for run in group.runs]
    selection = groups[0].runs[0].manifest.get("selection") if len(lines) == 1 else None
    taken = (selection or {}).get("best_step")
    return _panels(lines, Over("step", "optimizer step", taken), "Loss, its terms, and the learning rate")


def over_scales(group: Group) -> list[Panel]:
    """The validation metrics over the scales of a finished adapter; nothing where none was looked for."""
    run = group.runs[0]
    aims = {TARGETS: run.calibration.get(TARGETS, {})}
    lines = sorted((line | aims for line in run.calibration.get("curve", [])), key=lambda line: line["scale"])
    if len(lines) <= 2:  # the untouched model and the adapter as trained
        return []
    over = Over("scale", "scale of the adapter (1 as trained)", run.calibration["scale"])
    return _panels([(0, group, run, lines)], over, "Validation metrics over the adapter's scale")


def flat(line: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a line of the log, those of an inner mapping as `outer/inner`."""
    for name, value in line.items():
        key = f"{above}/{name}" if above else str(name)
        if isinstance(value, Mapping):
            yield from flat(value, key)
        elif (known := number(value)) is not None:
            yield key, known


def _panels(runs: Sequence[tuple[int, Group, RunData, Lines]], over: Over, title: str) -> list[Panel]:
    """A panel for each part of a line, the first with a title of its own."""
    curves: dict[str, list[Curve]] = {}
    for index, group, run, lines in runs:
        places: dict[str, list[tuple[float, float]]] = {}
        for line in lines:
            for key, value in flat(line):
                if key not in (over.name, *NOT_DRAWN):
                    places.setdefault(key, []).append((float(line[over.name]), value))
        for key, pairs in places.items():
            curves.setdefault(key, []).append(Curve(index, group, run, *np.array(pairs).T))
    terms = {term["name"] for *_, run, _ in runs for term in run.manifest.get("terms", [])}
    several = len({id(entry[1]) for entry in runs}) > 1
    panels: dict[str, Panel] = {}
    constant: dict[str, list[str]] = {}
    targets = {_aim(key) for key in curves}
    for key in sorted(curves, key=lambda key: "/" in key):
        if key in targets:
            continue
        side = key.split("/")[0] if "/" in key else ""
        panel = panels.setdefault(side, Panel(spelled(side).capitalize() or title, [], ""))
        aims = curves.get(_aim(key), [])
        steady = all(np.ptp(curve.values) == 0 for curve in (*curves[key], *aims))
        if steady and not aims:
            values = sorted({float(curve.values[0]) for curve in curves[key]})
            if values != [0.0]:
                constant.setdefault(side, []).append(f"{_spelled(key)} {' or '.join(map(_exact, values))}")
            continue
        nats = key in terms or {"nll", "kl", "loss"} & {*key.replace("/", "_").split("_")}
        unit = "tolerances" if "violations" in key.split("/") else "nats per token" if nats else ""
        panel.figures.append(_drawn(key, curves[key], aims, over, unit, several=several))
    return [panel._replace(constant=", ".join(constant.get(side, []))) for side, panel in panels.items()]


def _aim(key: str) -> str:
    """Where the target of a number stands: beside it, `validation/targets/auc`."""
    outer, slash, inner = key.partition("/")
    return f"{outer}/{TARGETS}/{inner}" if slash else f"{TARGETS}/{outer}"


def _exact(value: float) -> str:
    """A number that was set: as others are shown, with its third figure where that leaves it out."""
    return f"{value:.3g}" if 5e-4 <= abs(value) < 0.1 else show_number(value)


def _spelled(key: str) -> str:
    return spelled(key.split("/", 1)[-1].replace("/", ", "))


def _drawn(
    key: str, curves: Sequence[Curve], targets: Sequence[Curve], over: Over, unit: str, *, several: bool
) -> Drawn:
    """The figure of one number; it has a legend of the groups where these are several."""
    title, course, logged = _spelled(key), over.name == "step", "/" not in key
    figure, axes = canvas(over.label, unit or brief(title, 40))
    alone = len(curves) == 1
    says = []
    labelled: set[str] = set()
    for index, group, run, at, values in curves:
        first = group.letter not in labelled
        labelled.add(group.letter)
        color = GROUP_COLORS[index % len(GROUP_COLORS)]
        noisy = len(values) > 2 * SMOOTH
        if alone and noisy:
            axes.plot(*_thin(at, values), color=color, linewidth=0.8, alpha=0.35)
        axes.plot(
            *_thin(at, running_mean(values) if noisy else values),
            color=color,
            linewidth=1.6,
            linestyle=DASHES[index % len(DASHES)],
            marker="o" if len(values) < 30 else None,
            markersize=3.5,
            clip_on=len(values) >= 30,  # a dot on an axis is whole
            label=f"{group.letter}: {brief(group.title, 40)}" if first and several else None,
        )
        says.append(
            f"{run.name}: from {show_number(values[0])} at {at[0]:g} to {show_number(values[-1])} at {at[-1]:g}"
        )
    for place, target in enumerate(targets):
        aim = target.values if len(target.values) > 1 else np.repeat(target.values, 2)
        at = (
            target.at
            if len(target.at) > 1
            else np.array([min(curve.at[0] for curve in curves), max(curve.at[-1] for curve in curves)])
        )
        axes.plot(at, aim, color=INK, linewidth=1.1, linestyle="--", label=None if place else "target")
        says.append(f"target of {target.run.name}: {show_number(float(aim[0]))} to {show_number(float(aim[-1]))}")
    least = 0.0 if logged or unit else LEAST_AXIS
    axes.set_ylim(*_ends([float(end) for curve in (*curves, *targets) for end in curve.values], least))
    if over.taken is not None and not (course and logged):
        axes.axvline(over.taken, color=INK, linewidth=0.9, linestyle=":", label="taken")
        says.append(f"taken at {over.taken:g}")
    if all(float(place).is_integer() for curve in curves for place in curve.at):
        whole_numbers(axes)
    legend(axes, columns=2)
    name = f"{'course' if course else over.name}-{slug(key)}"
    return Drawn(name, brief(title, 40), f"{title} over the {over.label}. {listed(says)}", figure)


def _ends(values: Sequence[float], least: float) -> tuple[float, float]:
    """Of an axis that holds zero and all values, the highest and one below zero with a margin."""
    low, high = min(0.0, *values), max(0.0, *values)
    margin = 0.05 * (high - low)
    low, high = low - margin * (low < 0), high + margin
    return low, max(high, low + least) or 1.0


def running_mean(values: Array) -> Array:
    """Mean over a centred window that shrinks at both ends; there are more values than its `SMOOTH`."""
    window = np.ones(SMOOTH)
    means: Array = np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
    return means


def _thin(at: Array, values: Array) -> tuple[Array, Array]:
    every = max(1, len(at) // MOST_POINTS)
    return at[::every], values[::every]
