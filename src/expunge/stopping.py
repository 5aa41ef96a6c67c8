"""When to stop: looks at the selection texts while the run goes on, and the best state so far."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from expunge.config.goal import Goal
from expunge.model.load import LoadedModel
from expunge.prepare import Prepared
from expunge.processes import ALONE, Processes
from expunge.strength import (
    RETAIN_ROWS,
    TOLERANCES,
    Selection,
    Signals,
    evenly,
    lack,
    measure,
    relative_losses,
    shortfall,
)
from expunge.terms import Aim

NEAR = 0.15
"""The membership AUC corrects the depth where forgotten texts lack less than this share of it; else it says nothing."""
CORRECTION, LEAST, MOST = 0.2, 0.6, 1.6
"""Change of the depth at a look, as a share, per unit of AUC that is missing; and its bounds."""
SHARPENING, FLATTEST, SHARPEST = 2.0, 1 / 16, 4.0
"""Change of the logarithm of beta at a look per unit of min-k AUC that is missing; and the bounds of its factor."""
PRESSING, MOST_PRESSURE = 0.06, 8.0
"""Change of the logarithm of NPO's weight at a look per unit of membership AUC that is missing; bound of its factor."""
HOLDING, HELD = 2.0, 0.5
"""Change of the logarithm of the anchors' weight at a look, per unit of drift beyond this share of its ceiling."""
LOOSEST, TIGHTEST = 1 / 16, 4.0
"""Bounds of the factor on the anchors' weight."""
PREFIX = "best."
"""Of the tensors of the best state in a checkpoint."""


def selection_of(prepared: Prepared) -> Selection | None:
    """What a run is judged by; None where there are no unseen texts."""
    own = prepared.selection
    return own and Selection(own.members, own.nonmembers, evenly(prepared.retain, RETAIN_ROWS))


@dataclass(frozen=True)
class _Look:
    """The steps before it, the shortfall, and the signals that it was counted from."""

    step: int
    missing: float
    signals: Signals


class Selector:
    """The looks of one run.

    Args:
        selection: What to look at.
        goal: What to reach.
    """

    def __init__(self, selection: Selection, goal: Goal) -> None:
        self.selection, self._goal = selection, goal
        self._untouched: Signals | None = None
        self._relative = torch.ones(0)
        self._looks: list[_Look] = []
        self.best: list[Tensor] = []
        """The adapter's parameters at the best look."""
        self.best_step = 0

    def begin(self, loaded: LoadedModel, processes: Processes = ALONE) -> None:
        """Look at the untouched model; must come before the first look."""
        self._untouched = measure(loaded, self.selection, 0.0, processes)
        self._relative = relative_losses(loaded, self.selection.nonmembers, processes).to(loaded.device)

    def look(
        self, loaded: LoadedModel, parameters: Sequence[Tensor], step: int, processes: Processes = ALONE
    ) -> dict[str, float]:
        """Measure the adapter as it is after `step` steps, and keep it if it is the best so far."""
        if self._untouched is None:
            raise RuntimeError("begin comes first")
        signals = measure(loaded, self.selection, 1.0, processes)
        missing = shortfall(signals, self._untouched, self._goal)
        if self._take(_Look(step, missing, signals)):
            self.best = [parameter.detach().clone() for parameter in parameters]
        return {**asdict(signals), "shortfall": missing}

    def _take(self, look: _Look) -> bool:
        better = look.missing <= min((own.missing for own in self._looks), default=float("inf"))
        self._looks.append(look)
        if better:
            self.best_step = look.step
        return better

    @property
    def aim(self) -> Aim | None:
        """Where the next step pushes; None before the untouched model was looked at."""
        depth = self.depth
        return None if depth is None else Aim(depth, self._relative, self.sharpness, self.pressure, self.hold)

    @property
    def depth(self) -> float | None:
        """Mean loss that a forgotten text should have (nats per token): of unseen ones at the last look, corrected.

        Texts of the same mean loss are still told apart where other terms pull some of them back or push them on, so
        every look moves the depth by what its membership AUC is off.
        """
        if self._untouched is None:
            return None
        factor = 1.0
        for look in self._looks:
            if lack(look.signals) < NEAR:
                factor += CORRECTION * (look.signals.auc - self._goal.auc)
                factor = min(MOST, max(LEAST, factor))
        last = self._looks[-1].signals if self._looks else self._untouched
        return factor * last.holdout_nll

    @property
    def sharpness(self) -> float:
        """Factor on NPO's beta.

        NPO leaves a token alone once it is about 1/beta nats less likely than it was. So beta says how evenly a text's
        loss is spread over its tokens, which is what an attack by the least likely ones sees: those of forgotten texts
        more likely than those of unseen ones ask for a smaller beta, less likely ones for a larger.
        """
        near = (look.signals for look in self._looks if lack(look.signals) < NEAR)
        return _multiplier((SHARPENING * (self._goal.auc - own.min_k_auc) for own in near), FLATTEST, SHARPEST)

    @property
    def pressure(self) -> float:
        """Factor on NPO's weight, the multiplier of the membership AUC.

        How much of it a model takes is not known beforehand: too little, and it comes to rest before the depth, where
        what holds it in place is as strong. So the weight grows while the forgotten texts are told from unseen ones.
        """
        changes = (PRESSING * (look.signals.auc - self._goal.auc) for look in self._looks)
        return _multiplier(changes, 1 / MOST_PRESSURE, MOST_PRESSURE)

    @property
    def hold(self) -> float:
        """Factor on the weight of the anchors, the multiplier of the ceiling on drift.

        Anchors keep the loss of unseen texts where it was, and keep alive what is like them, short answers above all.
        So they weigh less while the unseen texts stay far below the ceiling, and more where these come near it; more
        than at the beginning only once the depth is reached, since forgetting goes before drift.
        """
        if self._untouched is None:
            return 1.0
        before, wanted, arrived = self._untouched.holdout_nll, HELD * self._goal.drift, self.arrived
        drifts = [max(0.0, look.signals.holdout_nll / before - 1) for look in self._looks]
        changes = [HOLDING * (drift - wanted) for drift in drifts]
        early = sum(arrived is None or look.step < arrived for look in self._looks)
        on_the_way = _multiplier(changes[:early], LOOSEST, 1.0)
        return _multiplier(changes[early:], LOOSEST, TIGHTEST, start=on_the_way)

    @property
    def arrived(self) -> int | None:
        """Steps after which the forgotten texts had come to the depth, by their loss or by the membership AUC."""
        for look in self._looks:
            signals = look.signals
            if signals.auc <= self._goal.auc + TOLERANCES["auc"] or lack(signals) <= TOLERANCES["depth"]:
                return look.step
        return None

    @property
    def reason(self) -> str:
        """Why a run that is over has stopped."""
        if self.arrived is None:
            return "all steps are done; the forgotten texts never came to the depth of unseen ones"
        return f"the forgotten texts came to the depth of unseen ones at step {self.arrived}, and the run has settled"

    def state(self) -> dict[str, Tensor]:
        """The best state, for a checkpoint."""
        return {f"{PREFIX}{index}": value for index, value in enumerate(self.best)}

    def restore(self, lines: Iterable[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> None:
        """Take over the looks in the log's lines and the best state of a checkpoint."""
        self._looks = []
        for line in lines:
            if "selection" in line:
                own = dict(line["selection"])
                missing = own.pop("shortfall")
                self._take(_Look(line["step"], missing, Signals(**own)))
        count = sum(name.startswith(PREFIX) for name in tensors)
        self.best = [tensors[f"{PREFIX}{index}"] for index in range(count)]


def _multiplier(changes: Iterable[float], least: float, most: float, start: float = 1.0) -> float:
    """`start`, its logarithm changed again and again, and kept within bounds after each change."""
    total = math.log(start)
    for change in changes:
        total = min(math.log(most), max(math.log(least), total + change))
    return math.exp(total)
