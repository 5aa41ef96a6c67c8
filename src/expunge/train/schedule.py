"""What happens when: the rows of every step, and its learning rate."""

import math
from collections.abc import Sequence

from expunge.config import UnlearnConfig
from expunge.data.sampler import Plan
from expunge.data.tokenize import TokenizedExample
from expunge.train.setup import Prepared

ANCHORS_PER_FORGET_SET = 4
"""Size of the anchor set in tokens, in forget sets; smaller where the run needs fewer."""
SHORTEST_EPOCH = 10
"""What is counted in epochs beside the passes over the forget set takes one to be so many steps at least."""
LOOKS_PER_EPOCH = 4
MOST_EPOCHS, MOST_STEPS = 24, 500
"""Passes over the forget set where the settings name none; or steps, if the run ends by itself and that is more."""


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
    ends_by_itself = config.epochs is None and config.select_every != 0
    return Plan(
        [len(row) for row in prepared.forget],
        [len(row) for row in prepared.retain],
        epochs=config.epochs or MOST_EPOCHS,
        least_steps=MOST_STEPS if ends_by_itself else 0,
        tokens_per_step=config.tokens_per_step,
        rows_per_step=config.rows_per_step,
        retain_per_forget=config.retain_per_forget,
        anchor_lengths=[len(row) for row in anchors],
        anchors_per_forget=config.anchors_per_forget,
        instead_lengths=[len(row) for row in prepared.instead],
        mix=config.mix,
        seed=config.seed,
    )


def usual_spacing(plan: Plan) -> int:
    """Steps between two looks where the settings do not name them."""
    return math.ceil(epoch_length(plan) / LOOKS_PER_EPOCH)


def epoch_length(plan: Plan) -> int:
    """Steps of an epoch, for what is counted in epochs beside the passes over the forget set."""
    return max(SHORTEST_EPOCH, plan.steps_per_epoch)


def learning_rate(config: UnlearnConfig, index: int, num_steps: int) -> float:
    """The learning rate of step `index` (from 0): a linear rise over `warmup`, the peak, then the schedule's fall."""
    peak = config.learning_rate or 0.0
    warm = round(config.warmup * num_steps)
    if index < warm:
        return peak * (index + 1) / warm
    if config.schedule == "constant":
        return peak
    left = 1 - (index - warm) / max(1, num_steps - warm)
    return peak * (left if config.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2)
