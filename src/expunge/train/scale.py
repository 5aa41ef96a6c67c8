"""How strong an adapter should be: its scale is a dial from the untouched model (0) over the trained one (1) on.

A scale is judged on selection texts by the signals of `signals.py`, so the search takes seconds. The selection is half
of the documents; `expunge evaluate` reports on the other half.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from expunge.config.criteria import Goal
from expunge.train.validation import TOLERANCES, Meter, Selection, Signals, misfit, oversaid, passed_bounds

SCALES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
"""Where the search looks first; then it halves the distance to the neighbours of the best, `REFINEMENTS` times."""
REFINEMENTS = 6
SAME_AUC = 0.005
"""Distances to the target that are closer than this count as the same; the stronger adapter wins then."""


@dataclass(frozen=True)
class Calibration:
    """The outcome of a search.

    Attributes:
        scale: The chosen factor.
        reached: Whether the target AUC is reached within 0.05 without passing a bound, and what is to be forgotten is
            said no longer.
        verdict: The same in words.
        curve: Signals of every scale that was tried, in their order.
    """

    scale: float
    reached: bool
    verdict: str
    curve: list[Signals]

    def at(self, scale: float) -> Signals:
        """The signals of a scale that was tried."""
        return next(signals for signals in self.curve if signals.scale == scale)


def record(
    found: Calibration, goal: Goal, *, trained_alpha: float, selection: Selection, marks: Sequence[str]
) -> dict[str, Any]:
    """The content of calibration.json: what was chosen, why, and the marks of the texts that it was chosen on."""
    return {
        "schema": 1,
        "scale": found.scale,
        "trained_alpha": trained_alpha,
        "reached": found.reached,
        "verdict": found.verdict,
        "target": asdict(goal),
        "curve": [asdict(signals) for signals in found.curve],
        "texts": {name: len(getattr(selection, name)) for name in ("members", "nonmembers", "retain", "forget")},
        "selection_sha256": list(marks),
    }


def choose(
    meter: Meter,
    goal: Goal,
    *,
    weighed: bool = False,
    known: Sequence[Signals] = (),
    progress: Callable[[int], None] = lambda count: None,
) -> Calibration:
    """Find the scale that comes closest to the target AUC without passing a bound.

    Args:
        meter: The model with its adapter, and the texts to judge by.
        goal: What to reach.
        weighed: Take the scale of the least `misfit` instead: the bounds may be passed where that brings the goal
            nearer than it costs.
        known: Signals of scales that were measured already.
        progress: Called with 1 after each scale.
    """
    found = {signals.scale: signals for signals in (meter.untouched, *known)}
    pick = _least_misfit if weighed else _best

    def look(scale: float) -> None:
        if scale not in found:
            found[scale] = meter.at(scale)
            progress(1)

    for scale in SCALES:
        look(scale)
    width = SCALES[1] - SCALES[0]
    for _ in range(REFINEMENTS):
        width /= 2
        best = pick(found, goal)
        for scale in (best - width, best + width):
            if 0 < scale <= SCALES[-1]:
                look(scale)
    best = pick(found, goal)
    return Calibration(best, *_judge(found[best], found, goal), sorted(found.values(), key=lambda own: own.scale))


def number_of_looks() -> int:
    """Most scales that `choose` measures."""
    return len(SCALES) + 2 * REFINEMENTS


def misfit_at(found: Calibration, goal: Goal) -> float:
    """The misfit of the chosen scale."""
    return misfit(found.at(found.scale), found.at(0.0), goal)


def _least_misfit(found: dict[float, Signals], goal: Goal) -> float:
    return min(found.values(), key=lambda own: (misfit(own, found[0.0], goal), -own.scale)).scale


def _best(found: dict[float, Signals], goal: Goal) -> float:
    """The scale within the bounds that is closest to the target; the untouched model is always within them."""
    within = [own for own in found.values() if not passed_bounds(own, found[0.0], goal)]
    closest = min(abs(own.auc - goal.auc) for own in within)
    return max(own.scale for own in within if abs(own.auc - goal.auc) <= closest + SAME_AUC)


def _judge(best: Signals, found: dict[float, Signals], goal: Goal) -> tuple[bool, str]:
    untouched = found[0.0]
    amiss = passed_bounds(best, untouched, goal)
    if oversaid(best, untouched) > TOLERANCES["said"]:
        amiss.append(f"still says {best.said:.0%} of the completions to forget")
    if abs(best.auc - goal.auc) <= TOLERANCES["auc"]:
        cost = f", but it {' and '.join(amiss)}" if amiss else ""
        return not amiss, f"membership AUC {best.auc:.2f} on the selection texts, {goal.auc:.2f} wanted{cost}"
    cost = f"; the chosen one {' and '.join(amiss)}" if amiss else ""
    beyond = [own for own in found.values() if abs(own.auc - goal.auc) < abs(best.auc - goal.auc) - SAME_AUC]
    if not beyond:
        why = f"no scale up to {SCALES[-1]:g} comes closer to {goal.auc:.2f}"
        return False, f"membership AUC {best.auc:.2f}: {why}{cost}"
    nearest = min(beyond, key=lambda own: abs(own.scale - best.scale))
    reasons = " and ".join(passed_bounds(nearest, untouched, goal)) or "misses the other aims by more"
    why = f"a strength of {nearest.scale:g}, which comes closer, {reasons}"
    return False, f"membership AUC {best.auc:.2f}, {goal.auc:.2f} wanted: {why}{cost}"
