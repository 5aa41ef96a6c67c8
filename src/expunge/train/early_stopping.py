"""Looks at the selection texts while a run goes on: which state is looked at, and the best so far."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor

from expunge.config.criteria import Goal
from expunge.errors import RunError
from expunge.train.setup import Prepared
from expunge.train.steering import Course, Look
from expunge.train.terms import Aim
from expunge.train.validation import Meter, Selection, Signals, relative_losses, shortfall

AVERAGING = 1 / 3
"""Epochs that the mean of the adapter's states runs over."""
WARMING = 4
"""It runs over no more than one in so many of the steps so far."""
BEST, MEAN = "best.", "mean."
"""Prefixes of the tensors of the best state and of the running mean in a checkpoint."""


def selection_of(prepared: Prepared) -> Selection | None:
    """What a run is judged by; None where there are no unseen texts."""
    own = prepared.selection
    return own and Selection.of(own.members, own.nonmembers, prepared.retain, prepared.forget)


class Selector:
    """The looks of one run.

    What is looked at, and kept, is a running mean of the adapter's states: at a learning rate that does not fall, a
    single state swings with every step, and the mean of some is what it swings around (Polyak and Juditsky 1992).

    Args:
        meter: The model with its adapter, and what to look at.
        goal: What to reach.
        beta: NPO's beta at the beginning.
        parameters: Those of the adapter, which the run changes.
        epoch: Optimizer steps of an epoch.
        pace: Steps between looks, over those that are usual.
    """

    def __init__(
        self,
        meter: Meter,
        goal: Goal,
        *,
        beta: float,
        parameters: Sequence[Tensor],
        epoch: int,
        pace: float = 1.0,
    ) -> None:
        self.meter, self._beta = meter, beta
        self.course = Course(meter.untouched, goal, pace=pace, rows=len(meter.selection.retain))
        """The looks so far, and what follows from them."""
        vocabulary = meter.loaded.base.get_input_embeddings().num_embeddings
        unseen = relative_losses(meter.selection.nonmembers, meter.holdout_logps, vocabulary)
        self._relative = unseen.to(meter.loaded.device)
        self._parameters, self._horizon = parameters, max(1.0, AVERAGING * epoch)
        self.mean = _copied(parameters)
        """The adapter's parameters as they are looked at."""
        self.best: list[Tensor] = []
        """Those at the best look."""

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Take the parameters as they are after `step` steps into the mean."""
        share = 1 / max(1.0, min(self._horizon, step / WARMING))
        for mean, parameter in zip(self.mean, self._parameters, strict=True):
            mean.lerp_(parameter, share)

    def look(self, step: int) -> dict[str, float]:
        """Measure the mean as it is after `step` steps, and keep it if it is the best so far."""
        own = _copied(self._parameters)
        take(self._parameters, self.mean)
        signals = self.meter.at(1.0)
        take(self._parameters, own)
        missing = shortfall(signals, self.course.untouched, self.course.goal)
        self.course.looks.append(Look(step, missing, signals))
        if self.course.best is self.course.looks[-1]:
            self.best = _copied(self.mean)
        return {**asdict(signals), "shortfall": missing}

    @property
    def aim(self) -> Aim:
        """Where the next step pushes."""
        own = self.course
        return Aim(
            own.depth, self._relative, own.beta(self._beta), own.pull, own.insistence, own.pressure, own.keep, own.hold
        )

    def state(self) -> dict[str, Tensor]:
        """The mean and the best state, for a checkpoint."""
        sides = ((BEST, self.best), (MEAN, self.mean))
        return {f"{prefix}{index}": value for prefix, side in sides for index, value in enumerate(side)}

    def restore(self, lines: Iterable[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> None:
        """Take over the looks in the log's lines, and the states of a checkpoint.

        Raises:
            RunError: The looks are not those of this version.
        """
        looks = []
        for line in lines:
            if "selection" in line:
                own = dict(line["selection"])
                missing = own.pop("shortfall")
                if own.keys() != {field.name for field in fields(Signals)}:
                    raise RunError(
                        "the run was begun by another version, which looked at something else: start it again"
                    )
                looks.append(Look(line["step"], missing, Signals(**own)))
        self.course.looks = looks
        device = self.mean[0].device
        self.best, self.mean = (
            [tensors[f"{side}{at}"].to(device) for at in range(sum(name.startswith(side) for name in tensors))]
            for side in (BEST, MEAN)
        )


@torch.no_grad()
def take(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Set parameters to other values."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _copied(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]
