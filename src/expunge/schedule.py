"""What happens when: the rows of every step, and its learning rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from expunge.config import UnlearnConfig
from expunge.data.batches import Plan
from expunge.data.tokenize import TokenizedExample
from expunge.prepare import Prepared

SETTLING, LEAST_SETTLING = 0.75, 2
"""Steps of the fall per step before it, and at least so many epochs, in a run that follows unseen texts."""
ANCHORS_PER_FORGET_SET = 4
"""Size of the anchor set in tokens, in forget sets; smaller where the run needs fewer."""


def anchor_tokens(prepared: Prepared, epochs: float) -> int:
    """Tokens of anchors that a run of so many epochs writes."""
    config = prepared.config
    if not config.anchor_weight:
        return 0
    forget = sum(map(len, prepared.forget))
    return math.ceil(forget * min(ANCHORS_PER_FORGET_SET, epochs * config.anchors_per_forget))


def make_plan(prepared: Prepared, anchors: Sequence[TokenizedExample] = ()) -> Plan:
    """The steps of a run, with anchors in them once these are written."""
    config = prepared.config
    return Plan(
        [len(row) for row in prepared.forget],
        [len(row) for row in prepared.retain],
        epochs=config.epochs,
        tokens_per_step=config.tokens_per_step,
        rows_per_step=config.rows_per_step,
        retain_per_forget=config.retain_per_forget,
        anchor_lengths=[len(row) for row in anchors],
        anchors_per_forget=config.anchors_per_forget,
        instead_lengths=[len(row) for row in prepared.instead],
        mix=config.mix,
        seed=config.seed,
    )


@dataclass(frozen=True)
class Decay:
    """From which step (from 0) the learning rate falls, and over how many steps; the run ends with it."""

    start: int
    steps: int

    @property
    def end(self) -> int:
        """Steps of the whole run."""
        return self.start + self.steps


def decay(config: UnlearnConfig, num_steps: int, *, arrived: int | None = None, steps_per_epoch: int = 0) -> Decay:
    """When the learning rate falls.

    A run that follows unseen texts goes on at its peak until it has come to their depth and settles from there on, so
    that neither the model nor the data say how many epochs are right. Every other run falls from the warm-up on.

    Args:
        config: Its `warmup`.
        num_steps: Most steps of the run.
        arrived: Steps after which the depth was reached; None where it has not been yet.
        steps_per_epoch: Of a run that follows unseen texts; 0 for any other.
    """
    if not steps_per_epoch:
        warm = round(config.warmup * num_steps)
        return Decay(warm, num_steps - warm)
    latest = math.ceil(num_steps / (1 + SETTLING))
    start = min(latest, arrived or latest)
    steps = max(LEAST_SETTLING * steps_per_epoch, math.ceil(SETTLING * start))
    return Decay(start, min(steps, num_steps - start))


def learning_rate(config: UnlearnConfig, index: int, num_steps: int, falling: Decay) -> float:
    """The learning rate of step `index` (from 0): a linear rise over `warmup`, the peak, then the schedule's fall."""
    peak = config.learning_rate or 0.0
    warm = round(config.warmup * num_steps)
    if index < warm:
        return peak * (index + 1) / warm
    if config.schedule == "constant" or index < falling.start:
        return peak
    left = 1 - (index - falling.start) / max(1, falling.steps)
    return peak * (left if config.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2)
