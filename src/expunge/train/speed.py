"""Make the steps of a run fast on a GPU: graphs where launching kernels is what takes the time, else compiled layers.

Nothing is taken on trust. Captured passes replay the first steps of the run and must give their gradient and their
losses, and be faster; else the run goes on without them, and one line says why.
"""

import time
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from expunge.data.sampler import Step, micro_batches
from expunge.errors import TrainingError
from expunge.model.captured import CapturedPasses, Recorder
from expunge.model.compiling import compile_layers
from expunge.model.packing import VARLEN, attention_way, flash_states
from expunge.train.trainer import Trainer

EPOCHS = 2
"""Epochs whose micro-batches say how large the captured passes should be; a larger one runs without."""
EIGHTHS = 5
"""Sizes of captured passes: the largest of these micro-batches, and those that are one to four eighths less."""
ROUNDED_TO = 64
"""Sizes are multiples of so many tokens."""
APART = 0.05
"""Relative difference of the gradient, and of each term, that other shapes of the products may make in bfloat16."""
NOISE = 0.02
"""Size of random numbers on the adapter while the passes are checked: where B is 0, half of the gradient is 0 too."""
FASTER = 0.9
"""Captured passes are taken when a step takes at most this share of the time."""
TIMED = 3
"""Steps that are timed each way."""


def speed_up(trainer: Trainer) -> str | None:
    """Capture the passes of the steps, or compile the layers; must come last before the first step.

    Returns:
        One line that says what was done, or why nothing was; None where nothing was to be done.
    """
    config, loaded = trainer.config, trainer.loaded
    if config.compile == "off" or loaded.device.type != "cuda":
        return None
    why = capture(trainer, Recorder(loaded.device))
    if loaded.captured is not None:
        return why
    return f"{why}; {compile_layers(loaded, lambda: trainer.gradient(next(trainer.plan.steps())))}"


def capture(trainer: Trainer, recorder: Recorder) -> str:
    """Capture the passes of the steps, check and time them; gives a line that says how they do, or why there are none.

    Raises:
        OutOfMemoryError: Not even a step without them fits.
    """
    loaded = trainer.loaded
    steps = list(islice(trainer.plan.steps(), EPOCHS * trainer.plan.steps_per_epoch))
    if obstacle := _obstacle(trainer):
        return f"not captured: {obstacle}"
    batches = [lengths for step in steps for lengths in _batches(trainer, step)]
    largest = max(map(sum, batches))
    sizes = sorted({-(-largest * (8 - less) // 8 // ROUNDED_TO) * ROUNDED_TO for less in range(EIGHTHS)})
    weights, begun = trainer.adapter.weights.data, time.perf_counter()
    kept, chance = weights.clone(), torch.Generator().manual_seed(0)
    weights.add_(torch.randn(weights.shape, generator=chance, dtype=weights.dtype).to(weights.device), alpha=NOISE)
    try:
        plain = _Plain(trainer, steps)  # before the graphs take their memory
        passes = CapturedPasses(
            partial(_flash, trainer),
            trainer.parameters,
            rows=max(map(len, batches)),
            longest=1 << (max(map(max, batches)) - 1).bit_length(),
            recorder=recorder,
        )
        for size in reversed(sizes):  # the largest first: the others fit into what it has taken
            passes.capture(size)
        loaded.captured = passes
        why = plain.against(trainer)
    except (RuntimeError, TrainingError) as error:  # out of memory among them: without graphs the step may fit
        why, loaded.captured = " ".join(str(error).split())[:200], None
    finally:
        weights.copy_(kept)
        trainer.adapter.gradients.zero_()
    if loaded.captured is None:
        return f"not captured: {why}"
    return f"passes captured in {time.perf_counter() - begun:.0f} s for {sizes[0]:,} to {sizes[-1]:,} tokens: {why}"


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
        "rows are padded, or do not attend by flash attention": not (trainer.packed and flash),
    }
    return next((reason for reason, found in reasons.items() if found), "")


def _flash(trainer: Trainer, ids: Tensor, positions: Tensor, cuts: Tensor, longest: int) -> Tensor:
    with trainer.loaded.autocast():
        return flash_states(trainer.loaded.base, ids, positions, cuts, longest)


def _batches(trainer: Trainer, step: Step) -> list[list[int]]:
    """Lengths of the rows of each micro-batch of a step."""
    rows = [[len(trainer.sides[name].rows[row]) for name, row in unit] for unit in trainer.units(step)]
    groups = micro_batches(areas := trainer.lengths(step), trainer.micro_batch_tokens(areas), packed=True)
    return [[length for unit in group for length in rows[unit]] for group in groups]


class _Plain:
    """What the layers as they are give for some steps, and how long a step takes them."""

    def __init__(self, trainer: Trainer, steps: list[Step]) -> None:
        self._steps = steps
        self._right = [  # of different sizes and rows
            (trainer.gradient(step), trainer.adapter.gradients.clone()) for step in steps[: 2 * EIGHTHS]
        ]
        self._milliseconds = _milliseconds(trainer, steps)

    def against(self, trainer: Trainer) -> str:
        """Leave the captured passes in use if they give the same, and are faster; says how they do."""
        loaded, apart = trainer.loaded, list[float]()
        for step, right in zip(self._steps, self._right, strict=False):
            own = trainer.gradient(step), trainer.adapter.gradients
            if loaded.captured is None:
                return "they leave too little memory"
            apart += map(_apart, own, right)
        after = _milliseconds(trainer, self._steps)
        told = f"{after:.1f} ms a step in place of {self._milliseconds:.1f}"
        same = all(value <= APART for value in apart)
        if same and after <= FASTER * self._milliseconds:
            return told
        loaded.captured = None
        return (
            f"no faster ({told})" if same else f"the gradient is {max(apart):.2g} from that of the layers as they are"
        )


def _apart(own: Tensor, right: Tensor) -> float:
    """Distance of two vectors as a share of the second's length."""
    return float((own - right).norm() / right.norm().clamp(min=1e-12))


def _milliseconds(trainer: Trainer, steps: list[Step]) -> float:
    """Time of a step without its update, on average."""
    trainer.gradient(steps[0])
    torch.cuda.synchronize(trainer.loaded.device)
    begun = time.perf_counter()
    for step in islice(steps, TIMED):
        trainer.gradient(step)
    torch.cuda.synchronize(trainer.loaded.device)
    return 1000 * (time.perf_counter() - begun) / min(TIMED, len(steps))
