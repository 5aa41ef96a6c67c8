"""Make the steps of a run fast on a GPU: graphs where launching kernels is what takes the time.

Nothing is taken on trust. Some steps of the run, from the smallest to the largest, are computed three times: as they
are; filled up to the sizes of the graphs, which may only round in another way; and replayed, which must give what the
filled ones give, and be faster. Else the run goes on without graphs, and one line says why.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from expunge.data.sampler import Step
from expunge.errors import TrainingError
from expunge.model.captured import CapturedPasses, Recorder
from expunge.model.packing import UNBOUNDED, VARLEN, attention_way, flash_states
from expunge.train.trainer import Trainer

Item = TypeVar("Item")
SHARES = (0.25, 0.5, 0.75, 0.95, 1.0)
"""Sizes of captured passes: each is the smallest that this share of the run's micro-batches fits into."""
ROUNDED_TO = 64
"""Sizes are multiples of so many tokens."""
MOST_STEPS = 4000
"""Steps of the run, evenly from all of it, that are looked at for the sizes. A step that is larger than all of them is
computed by the layers."""
APART = 0.05
"""Relative difference of the gradient, and of each term, between replayed passes and the same ones of the layers: the
order in which flash attention adds up, and what the layers make of it."""
ROUNDED = 0.25
"""The same between filled passes and those as they are, whose products have other shapes: bfloat16 moves the states of
a language model by 3 % in the mean."""
NOISE = 0.02
"""Size of random numbers on the adapter while the passes are checked: where B is 0, half of the gradient is 0 too."""
FASTER = 0.9
"""Captured passes are taken when a step takes at most this share of the time."""
TRIED = (0.0, *SHARES[1:])
"""Steps whose gradients are compared and that are timed, by their place in the order of size: the smallest, of which
most is filled up, and the largest that each of the other sizes takes."""


def speed_up(trainer: Trainer) -> str | None:
    """Capture the passes of the steps; must come last before the first.

    Returns:
        One line that says what was done, or why nothing was; None where nothing was to be done.
    """
    device = trainer.loaded.device
    return None if trainer.config.compile == "off" or device.type != "cuda" else capture(trainer, Recorder(device))


def capture(trainer: Trainer, recorder: Recorder) -> str:
    """Capture the passes of the steps, check and time them; gives a line that says how they do, or why there are none.

    Raises:
        OutOfMemoryError: Not even a step without them fits.
    """
    loaded, rows = trainer.loaded, trainer.rows
    if obstacle := _obstacle(trainer):
        return f"not captured: {obstacle}"
    begun, every = time.perf_counter(), -(-rows.num_steps // MOST_STEPS)
    # Of more than an epoch, since the other texts before forget rows differ from step to step.
    steps = islice(rows.plan.steps(), 0, rows.num_steps, every)
    looked_at = sorted(((rows.batch_lengths(step), step) for step in steps), key=lambda pair: sum(map(sum, pair[0])))
    tried = [step for _, step in _at(TRIED, looked_at)]
    batches = [lengths for step_batches, _ in looked_at for lengths in step_batches]
    sizes = sizes_for([*map(sum, batches)])
    weights, forget = trainer.adapter.weights.data, rows.sides["forget"]
    kept, chance = weights.clone(), torch.Generator().manual_seed(0)
    fits, guessed = rows.most_rows, forget.guessed
    forget.guessed = False  # of NLLs that are nearly equal, rounding would say which token gets which target
    weights.add_(torch.randn(weights.shape, generator=chance, dtype=weights.dtype).to(weights.device), alpha=NOISE)
    try:
        # Before the graphs take their memory; the first pass of each size waits for memory and libraries.
        for step in reversed(tried):
            trainer.gradient(step)
        right, before = _gradients(trainer, tried)
        fits = rows.most_rows
        loaded.captured = CapturedPasses(  # and nothing else holds them: out of memory, they go with this reference
            partial(_flash, trainer),
            trainer.parameters,
            rows=max(map(len, batches)),
            longest=min(1 << (max(map(max, batches)) - 1).bit_length(), loaded.context or UNBOUNDED),
            recorder=recorder,
        )
        for size in sizes:
            loaded.captured.add(size)
        why = _against(trainer, tried, right, before)
    except (RuntimeError, TrainingError) as error:  # out of memory among them: without graphs the step may fit
        why, loaded.captured = " ".join(str(error).split())[:200], None
    finally:
        weights.copy_(kept)
        trainer.adapter.gradients.zero_()
        forget.guessed = guessed
    if loaded.captured is None:
        rows.most_rows = fits  # what did not fit beside the graphs may fit without
        torch.cuda.empty_cache()
        return f"not captured: {why}"
    return f"passes captured in {time.perf_counter() - begun:.0f} s for {sizes[0]:,} to {sizes[-1]:,} tokens: {why}"


def beside_graphs(trainer: Trainer, work: Callable[[], Any]) -> Any:
    """What `work` gives; where it does not fit into the memory beside graphs, they are given up.

    Of several processes each may wait for the others within `work`, so one alone cannot do it again.
    """
    try:
        return work()
    except torch.OutOfMemoryError:
        if trainer.loaded.captured is None or trainer.processes.count > 1:
            raise
        trainer.loaded.give_up_graphs()
    torch.cuda.empty_cache()  # outside of the handler, which holds the tensors of the failed pass
    return work()


def sizes_for(tokens: list[int]) -> list[int]:
    """Sizes of captured passes for micro-batches of so many tokens."""
    return sorted({-(-count // ROUNDED_TO) * ROUNDED_TO for count in _at(SHARES, sorted(tokens))})


def _at(shares: Sequence[float], ordered: Sequence[Item]) -> list[Item]:
    """The last of each share of what stands in order, each once; of the share 0, the first."""
    return [ordered[at] for at in sorted({max(0, math.ceil(share * len(ordered)) - 1) for share in shares})]


def _obstacle(trainer: Trainer) -> str:
    """Why the passes of these steps cannot be captured; empty where nothing is known."""
    loaded = trainer.loaded
    with loaded.autocast():
        flash = attention_way(loaded.base) == VARLEN
    reasons = {
        "gradient checkpointing runs the layers twice": trainer.config.gradient_checkpointing,
        "processes share the weights of the layers": loaded.lockstep is not None,
        "the forget loss reads an inner layer": trainer.layer is not None,
        "the weights are in 4 bits": trainer.config.load_in_4bit,
        "rows are padded": not trainer.rows.packed,
        "rows do not attend by flash attention": not flash,
    }
    return next((reason for reason, found in reasons.items() if found), "")


def _flash(trainer: Trainer, ids: Tensor, positions: Tensor, cuts: Tensor, longest: int) -> Tensor:
    with trainer.loaded.autocast():
        return flash_states(trainer.loaded.base, ids, positions, cuts, longest)


Found = list[tuple[Tensor, Tensor]]
"""The terms of the loss and the gradient, of some steps."""


def _against(trainer: Trainer, steps: list[Step], right: Found, before: float) -> str:
    """Capture the passes and leave them in use if they give the same, and are faster; says how they do.

    Args:
        trainer: With passes that are not captured yet.
        steps: The steps that are tried.
        right: What the layers as they are give for them.
        before: Milliseconds that a step takes them.
    """
    loaded = trainer.loaded
    filled, _ = _gradients(trainer, steps)
    if loaded.captured is not None:
        loaded.captured.capture()
        for _ in range(2):  # the first replay of a graph sends it to the device
            replayed, after = _gradients(trainer, steps)
    if loaded.captured is None:
        return "they leave too little memory"
    for name, got, other, most in ("filled", filled, right, ROUNDED), ("replayed", replayed, filled, APART):
        apart = [_apart(*both) for pairs in zip(got, other, strict=True) for both in zip(*pairs, strict=True)]
        if not all(value <= most for value in apart):
            loaded.captured = None
            return f"the gradient of {name} passes is {max(apart):.2g} from what it should be"
    told = f"{after:.1f} ms a step in place of {before:.1f}"
    if after <= FASTER * before:
        return told
    loaded.captured = None
    return f"no faster ({told})"


def _gradients(trainer: Trainer, steps: list[Step]) -> tuple[Found, float]:
    """What some steps give, and the milliseconds that one of them takes on average, without its update."""
    torch.cuda.synchronize(trainer.loaded.device)
    begun = time.perf_counter()
    found = [(trainer.gradient(step), trainer.adapter.gradients.clone()) for step in steps]
    torch.cuda.synchronize(trainer.loaded.device)
    return found, 1000 * (time.perf_counter() - begun) / len(steps)


def _apart(vector: Tensor, right: Tensor) -> float:
    """Distance of two vectors as a share of the second's length."""
    return float((vector - right).norm() / right.norm().clamp(min=1e-12))
