"""Figures of what a run was steered by: the looks at its selection texts, and the strengths that were tried."""

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.report.collect import RunData
from expunge.report.drawing import DASHES, GROUP_COLORS, INK, SET_COLORS, canvas, legend, whole_numbers
from expunge.report.figures import Drawn
from expunge.report.readings import number

SIGNALS = ("auc", "forget_nll", "holdout_nll", "retain")
Point = tuple[float, Mapping[str, Any]]


def looks(run: RunData) -> list[Drawn]:
    """The selection signals over the steps; nothing where the run did not look."""
    points = [(step["step"], step["selection"]) for step in run.steps if _whole(step.get("selection"))]
    selection = run.manifest.get("selection")
    chosen = number(selection.get("best_step")) if isinstance(selection, Mapping) else None
    return _pair("looks", "optimizer step", points, chosen)


def strengths(run: RunData) -> list[Drawn]:
    """The same signals over the strength of the finished adapter; nothing where it was not chosen."""
    curve = run.calibration.get("curve")
    points = [(own["scale"], own) for own in curve if _whole(own)] if isinstance(curve, list) else []
    points.sort(key=lambda point: point[0])
    return _pair("strengths", "strength of the adapter (1 as trained)", points, number(run.calibration.get("scale")))


def _whole(signals: Any) -> bool:
    return isinstance(signals, Mapping) and all(number(signals.get(name)) is not None for name in ("scale", *SIGNALS))


def _pair(name: str, xlabel: str, points: Sequence[Point], chosen: float | None) -> list[Drawn]:
    """How unlikely forgotten and unseen texts are, and membership beside what is kept."""
    if not points:
        return []
    losses = {
        "to forget": ("forget_nll", SET_COLORS["forget"], DASHES[0]),
        "unseen": ("holdout_nll", SET_COLORS["holdout"], DASHES[1]),
    }
    shares = {
        "membership AUC": ("auc", GROUP_COLORS[3], DASHES[0]),
        "retain probability": ("retain", SET_COLORS["retain"], DASHES[1]),
    }
    # runs of earlier versions have not looked at these
    if all(number(own.get("lost")) is not None for _, own in points):
        points = [(at, {**own, "kept": 1 - own["lost"]}) for at, own in points]
        shares["retain still said"] = ("kept", SET_COLORS["retain"], DASHES[0])
    if all(number(own.get("said")) is not None for _, own in points):
        shares["forget still said"] = ("said", SET_COLORS["forget"], DASHES[0])
    return [
        _drawn(f"{name}-loss", f"Loss ({name})", xlabel, "NLL (nats per token)", losses, points, chosen),
        _drawn(f"{name}-shares", f"AUC and keeping ({name})", xlabel, "AUC, probability", shares, points, chosen),
    ]


def _drawn(
    name: str,
    title: str,
    xlabel: str,
    ylabel: str,
    lines: Mapping[str, tuple[str, str, Any]],
    points: Sequence[Point],
    chosen: float | None,
) -> Drawn:
    figure, axes = canvas(xlabel, ylabel)
    places = [place for place, _ in points]
    said = []
    for label, (key, color, dash) in lines.items():
        values = [float(signals[key]) for _, signals in points]
        marker = "o" if len(points) < 30 else None
        axes.plot(places, values, color=color, linestyle=dash, marker=marker, markersize=3, linewidth=1.5, label=label)
        said.append(f"{label} from {values[0]:.3g} to {values[-1]:.3g}")
    axes.set_ylim(bottom=0.0)
    if chosen is not None:
        axes.axvline(chosen, color=INK, linewidth=0.9, linestyle=":", label="taken")
        said.append(f"taken at {chosen:g}")
    if all(isinstance(place, int) for place in places):
        whole_numbers(axes)
    legend(axes)
    return Drawn(name, title, f"{ylabel} over {xlabel}: " + "; ".join(said), figure)
