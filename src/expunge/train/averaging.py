"""An exponential moving average of the adapter: at a constant learning rate a single state swings with every step, and
the mean of some is what it swings around (Polyak and Juditsky 1992).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

WARMING = 4
"""The average runs over no more than one in so many of the steps so far, so that the start is soon forgotten."""


class MovingAverage:
    """The average of a parameter over about `steps` steps; with 0 steps its last state."""

    def __init__(self, parameter: Tensor, steps: int) -> None:
        self._parameter, self._steps = parameter, steps
        self.value = parameter.detach().clone()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameter as it is after `step` steps."""
        self.value.lerp_(self._parameter, 1 / max(1.0, min(self._steps, step / WARMING)))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the parameter is the average."""
        current = self._parameter.detach().clone()
        self._parameter.data.copy_(self.value)
        try:
            yield
        finally:
            self._parameter.data.copy_(current)
