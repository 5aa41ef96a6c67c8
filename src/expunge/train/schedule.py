"""What happens when: the rows of every step, its learning rate, and when it is evaluated."""

import math
from collections.abc import Mapping, Sequence

from expunge.config import UnlearnConfig
from expunge.data.sampler import Plan
from expunge.data.tokenize import TokenizedExample

REPLAY_PER_FORGET_SET = 4
"""Size of the replay set in tokens, in forget sets; smaller where the run needs fewer."""
EPOCHS, MOST_EPOCHS, MOST_STEPS = 14, 36, 500
"""Passes over the forget set where the settings name none; the same, or these steps if that is more, of a run that
ends by itself."""
EVALUATION_SHARE, EVALUATIONS_PER_EPOCH = 0.1, 4
"""Evaluation steps cost about this share of the training at most, and are no more often than this."""
FALLING = 1 / 2
"""Share of the steps at whose end a `stable_decay` rate falls to zero."""
FORWARD_SHARE = 1 / 2
"""Of what a token costs in training, its forward pass: a frozen base has no gradients of weights."""


def replay_tokens(config: UnlearnConfig, forget: Sequence[TokenizedExample], epochs: float) -> int:
    """Tokens of replay texts that a run of so many epochs needs."""
    if not config.replay_weight:
        return 0
    return math.ceil(sum(map(len, forget)) * min(REPLAY_PER_FORGET_SET, epochs))


def make_plan(config: UnlearnConfig, sides: Mapping[str, Sequence[TokenizedExample]]) -> Plan:
    """The steps of a run over its rows of `forget`, `retain` and `instead`, and of `replay` once these are written."""
    stops_early = config.eval_every != 0
    epochs = config.epochs or (MOST_EPOCHS if stops_early else EPOCHS)
    least = max(config.min_steps, MOST_STEPS if stops_early and config.epochs is None else 0)
    return Plan(
        [len(row) for row in sides["forget"]],
        [len(row) for row in sides.get("retain", ())],
        epochs=epochs,
        least_steps=least,
        tokens_per_step=config.tokens_per_step,
        rows_per_step=config.rows_per_step,
        replay_lengths=[len(row) for row in sides.get("replay", ())],
        instead_lengths=[len(row) for row in sides.get("instead", ())],
        seed=config.seed,
    )


def evaluation_spacing(plan: Plan, evaluated_tokens: int, step_tokens: float) -> int:
    """Steps between two evaluation steps where the settings do not name them.

    An evaluation step, of forward passes alone, reads `evaluated_tokens`, an optimizer step `step_tokens` on average.
    """
    affordable = evaluated_tokens * FORWARD_SHARE / (EVALUATION_SHARE * step_tokens)
    return max(1, math.ceil(affordable), math.ceil(plan.steps_per_epoch / EVALUATIONS_PER_EPOCH))


def learning_rate(config: UnlearnConfig, index: int, num_steps: int) -> float:
    """The learning rate of step `index` (from 0): a linear rise over `warmup`, the peak, then the schedule's fall."""
    peak = config.learning_rate or 0.0
    warm = round(config.warmup * num_steps)
    if index < warm:
        return peak * (index + 1) / warm
    if config.schedule == "constant":
        return peak
    left = 1 - (index - warm) / max(1, num_steps - warm)
    if config.schedule == "stable_decay":
        return peak * min(1.0, left / FALLING)
    return peak * (left if config.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2)
