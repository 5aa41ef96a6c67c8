"""An exponential moving average of the adapter: at a constant learning rate a single state swings with every step, and
the mean of some is what it swings around (Polyak and Juditsky 1992).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

WARMING = 4
"""The average runs over no more than one in so many of the steps so far, so that the start is soon forgotten."""


class MovingAverage:
    """The average of some parameters over about `steps` steps; with 0 steps it is the parameters themselves."""

    def __init__(self, parameters: Sequence[Tensor], steps: int) -> None:
        self._parameters, self._steps = list(parameters), steps
        self.values = copied(parameters) if steps else list(parameters)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters as they are after `step` steps."""
        if self._steps:
            share = 1 / max(1.0, min(self._steps, step / WARMING))
            torch._foreach_lerp_(self.values, self._parameters, share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the parameters are those of the average."""
        if not self._steps:
            yield
            return
        own = copied(self._parameters)
        assign(self._parameters, self.values)
        try:
            yield
        finally:
            assign(self._parameters, own)


@torch.no_grad()
def assign(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Set parameters to other values."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def copied(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies without a history."""
    return [tensor.detach().clone() for tensor in tensors]
