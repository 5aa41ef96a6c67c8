"""When to stop: looks at the selection texts while the run goes on, and the best state so far."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from expunge.config.goal import Goal
from expunge.model.load import LoadedModel
from expunge.prepare import Prepared
from expunge.processes import ALONE, Processes
from expunge.strength import RETAIN_ROWS, TOLERANCES, Selection, Signals, evenly, lack, measure, shortfall

UNSTEERED = 0.4
"""Share of NPO's weight where it should follow the unseen texts and there are none."""
RAMP, REST = 0.5, 0.15
"""NPO has its whole weight while forgotten texts lack this share of the unseen texts' loss, and what is needed to keep
them from coming back (`REST`) where they lack nothing."""
PREFIX = "best."
"""Of the tensors of the best state in a checkpoint."""


def selection_of(prepared: Prepared) -> Selection | None:
    """What a run is judged by; None where there are no unseen texts."""
    own = prepared.selection
    return own and Selection(own.members, own.nonmembers, evenly(prepared.retain, RETAIN_ROWS))


@dataclass(frozen=True)
class _Look:
    """Shortfall, membership AUC, and the share of the unseen texts' loss that the forgotten ones lack."""

    missing: float
    auc: float
    lack: float


class Selector:
    """The looks of one run.

    Args:
        selection: What to look at.
        goal: What to reach.
        patience: Looks in a row without a better state, once the membership AUC is no longer above the goal.
    """

    def __init__(self, selection: Selection, goal: Goal, *, patience: int) -> None:
        self.selection, self._goal, self._patience = selection, goal, patience
        self._untouched: Signals | None = None
        self._looks: list[_Look] = []
        self.best: list[Tensor] = []
        """The adapter's parameters at the best look."""
        self.best_step = 0

    def begin(self, loaded: LoadedModel, processes: Processes = ALONE) -> None:
        """Look at the untouched model; must come before the first look."""
        self._untouched = measure(loaded, self.selection, 0.0, processes)

    def look(
        self, loaded: LoadedModel, parameters: Sequence[Tensor], step: int, processes: Processes = ALONE
    ) -> dict[str, float]:
        """Measure the adapter as it is after `step` steps, and keep it if it is the best so far."""
        if self._untouched is None:
            raise RuntimeError("begin comes first")
        signals = measure(loaded, self.selection, 1.0, processes)
        missing = shortfall(signals, self._untouched, self._goal)
        if self._take(step, _Look(missing, signals.auc, lack(signals))):
            self.best = [parameter.detach().clone() for parameter in parameters]
        return {**asdict(signals), "shortfall": missing}

    def _take(self, step: int, look: "_Look") -> bool:
        better = look.missing < min((own.missing for own in self._looks), default=float("inf"))
        self._looks.append(look)
        if better:
            self.best_step = step
        return better

    @property
    def push(self) -> float:
        """Share of NPO's weight, from the last look: 1 far from the depth of unseen texts, `REST` at it, 0 below it.

        Pushing on at full weight goes past that depth at once, and without any push the texts come back.
        """
        return min(1.0, max(0.0, REST + self._looks[-1].lack / RAMP)) if self._looks else 1.0

    @property
    def reason(self) -> str | None:
        """Why the run should stop; None while it should go on."""
        if not self._looks:
            return None
        if self._looks[-1].missing == 0:
            return "the goal is reached"
        best = min(range(len(self._looks)), key=lambda at: self._looks[at].missing)
        through = next(
            (at for at, look in enumerate(self._looks) if look.auc <= self._goal.auc + TOLERANCES["auc"]), None
        )
        if through is not None and len(self._looks) - 1 - max(best, through) >= self._patience:
            return f"no better state in {self._patience} looks since the membership AUC has come to the goal"
        return None

    @torch.no_grad()
    def take_best(self, parameters: Sequence[Tensor]) -> None:
        """Set the adapter back to its best state."""
        for parameter, value in zip(parameters, self.best, strict=True):
            parameter.copy_(value)

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
                self._take(line["step"], _Look(missing, own["auc"], lack(Signals(**own))))
        count = sum(name.startswith(PREFIX) for name in tensors)
        self.best = [tensors[f"{PREFIX}{index}"] for index in range(count)]
