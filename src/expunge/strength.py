"""How strong an adapter should be: its scale is a dial from the untouched model (0) over the trained one (1) on.

A scale is judged on selection texts by teacher-forced signals alone, so the search takes seconds: whether a membership
attack by loss tells forgotten texts from texts that were never seen, what the retain set has kept, and how far the
loss of unseen texts has moved. The selection is half of the documents; `expunge evaluate` reports on the other half.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

import torch
from peft.tuners.lora import LoraLayer

from expunge.data.tokenize import TokenizedExample
from expunge.evaluate.stats import auc
from expunge.model.load import LoadedModel
from expunge.model.logps import sequence_logps
from expunge.processes import ALONE, Processes

SCALES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
"""Where the search looks first; then it halves the distance to the neighbours of the best, `REFINEMENTS` times."""
REFINEMENTS = 2
RETAIN_ROWS = 256
"""Retain rows that are looked at, evenly from all of them."""
SAME_AUC = 0.005
"""Distances to the target that are closer than this count as the same; the stronger adapter wins then."""


@dataclass(frozen=True)
class Selection:
    """Texts that a scale is chosen on.

    Attributes:
        members: Texts that are to be forgotten.
        nonmembers: Texts like them that the model has never seen.
        retain: Texts to keep.
    """

    members: list[TokenizedExample]
    nonmembers: list[TokenizedExample]
    retain: list[TokenizedExample]


@dataclass(frozen=True)
class Target:
    """What a scale should reach.

    Attributes:
        auc: Membership AUC of a model that never saw the forgotten texts: 0.5, or the retrained twin's.
        retain: Least probability of the retain texts, as a share of the untouched model's.
        drift: Largest relative change of the unseen texts' loss.
    """

    auc: float = 0.5
    retain: float = 0.97
    drift: float = 0.05


@dataclass(frozen=True)
class Signals:
    """What one scale does on the selection.

    Attributes:
        scale: Factor on the adapter; 0 is the untouched model.
        auc: P(a member has a lower mean loss than a non-member) + 0.5 P(equal).
        forget_nll: Mean over members of their loss per token, nats.
        holdout_nll: Mean over non-members.
        retain: Mean probability of the retain completions (length-normalised, exp of minus the loss per token).
    """

    scale: float
    auc: float
    forget_nll: float
    holdout_nll: float
    retain: float


@dataclass(frozen=True)
class Calibration:
    """The outcome of a search.

    Attributes:
        scale: The chosen factor.
        reached: Whether the target AUC is reached within 0.05 without passing a bound.
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


@contextmanager
def scaled(model: torch.nn.Module, factor: float) -> Iterator[None]:
    """The model with its adapter times `factor`."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    own = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            layer.scaling.update({name: factor * value for name, value in layer.scaling.items()})
        yield
    finally:
        for layer, values in zip(layers, own, strict=True):
            layer.scaling.update(values)


def measure(loaded: LoadedModel, selection: Selection, scale: float, processes: Processes = ALONE) -> Signals:
    """Signals of one scale: a forward pass over the selection."""
    rows = [*selection.members, *selection.nonmembers, *selection.retain]
    with scaled(loaded.model, scale):
        logps = sequence_logps(loaded, [row.input_ids for row in rows], processes=processes)
    scores = [own.mean().item() for own in logps[: len(rows) - len(selection.retain)]]
    members, nonmembers = scores[: len(selection.members)], scores[len(selection.members) :]
    kept = [
        math.exp(own[row.targets("completion").start - 1 :].mean().item())
        for row, own in zip(selection.retain, logps[len(scores) :], strict=True)
    ]
    return Signals(scale, auc(members, nonmembers), -fmean(members), -fmean(nonmembers), sum(kept) / max(1, len(kept)))


def choose(
    loaded: LoadedModel,
    selection: Selection,
    target: Target,
    *,
    processes: Processes = ALONE,
    progress: Callable[[int], None] = lambda count: None,
) -> Calibration:
    """Find the scale that comes closest to the target without passing a bound.

    Args:
        loaded: The model with its adapter.
        selection: Texts to judge by; members and non-members at least one each.
        target: What to reach.
        processes: Those that share the forward passes.
        progress: Called with 1 after each scale.
    """
    found: dict[float, Signals] = {}

    def look(scale: float) -> None:
        if scale not in found:
            found[scale] = measure(loaded, selection, scale, processes)
            progress(1)

    for scale in (0.0, *SCALES):
        look(scale)
    width = SCALES[1] - SCALES[0]
    for _ in range(REFINEMENTS):
        width /= 2
        best = _best(found, target)
        for scale in (best - width, best + width):
            if 0 < scale <= SCALES[-1]:
                look(scale)
    best = _best(found, target)
    return Calibration(best, *_judge(found[best], found, target), sorted(found.values(), key=lambda own: own.scale))


def number_of_looks() -> int:
    """Most scales that `choose` tries."""
    return 1 + len(SCALES) + 2 * REFINEMENTS


def passed_bounds(signals: Signals, untouched: Signals, target: Target) -> list[str]:
    """The bounds that a scale passes, in words."""
    passed = []
    kept, drift = signals.retain / untouched.retain if untouched.retain else 1.0, _drift(signals, untouched)
    if kept < target.retain:
        passed.append(f"keeps {kept:.1%} of the retain set's probability (floor {target.retain:.1%})")
    if drift > target.drift:
        passed.append(f"moves the loss of unseen texts by {drift:.1%} (ceiling {target.drift:.1%})")
    return passed


def _drift(signals: Signals, untouched: Signals) -> float:
    return abs(signals.holdout_nll / untouched.holdout_nll - 1)


def _best(found: dict[float, Signals], target: Target) -> float:
    """The scale within the bounds that is closest to the target; the untouched model is always within them."""
    within = [own for own in found.values() if not passed_bounds(own, found[0.0], target)]
    closest = min(abs(own.auc - target.auc) for own in within)
    return max(own.scale for own in within if abs(own.auc - target.auc) <= closest + SAME_AUC)


def _judge(best: Signals, found: dict[float, Signals], target: Target) -> tuple[bool, str]:
    if abs(best.auc - target.auc) <= 0.05:
        return True, f"membership AUC {best.auc:.2f} on the selection texts, {target.auc:.2f} wanted"
    beyond = [own for own in found.values() if abs(own.auc - target.auc) < abs(best.auc - target.auc) - SAME_AUC]
    if not beyond:
        return False, f"membership AUC {best.auc:.2f}: no scale up to {SCALES[-1]:g} comes closer to {target.auc:.2f}"
    nearest = min(beyond, key=lambda own: abs(own.scale - best.scale))
    reasons = " and ".join(passed_bounds(nearest, found[0.0], target))
    return False, f"membership AUC {best.auc:.2f}, {target.auc:.2f} wanted: scale {nearest.scale:g} {reasons}"
