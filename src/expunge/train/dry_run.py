"""What a run would take, before it is started: sizes from counting, time and memory from a few real steps.

    training time = seconds of the timed steps / their area * area of all steps
    forward time  = seconds of a timed forward pass / its area * (two loss passes + one reference pass + all looks)
    whole run     = preparation (done for real) + forward time + training time
    peak memory   = peak of this process, which has loaded the model, put the largest batches of every kind through it
                    and taken steps with the whole adapter, + the part of the reference that a run holds in memory

The area (tokens with the padding) is what the matrix products see. The steps are real ones, taken
on a throw-away adapter; the largest comes first and is not timed, so that nothing is timed while it warms up.
"""

import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from accelerate import Accelerator

from expunge.config import SETS, UnlearnConfig
from expunge.data.sampler import Size, Step, micro_batches, size_of
from expunge.data.tokenize import TokenizedExample
from expunge.model import reference
from expunge.model.logps import mean_losses
from expunge.model.replay import seconds_per_token
from expunge.runs.run import Run, peak_memory
from expunge.train.early_stopping import selection_of
from expunge.train.scale import number_of_looks
from expunge.train.schedule import anchor_tokens, make_plan, usual_spacing
from expunge.train.setup import Prepared, prepare
from expunge.train.terms import reference_sides
from expunge.train.trainer import MICRO_BATCH_TOKENS, Trainer
from expunge.utils.progress import Reporter
from expunge.utils.text import show_bytes, show_duration

TIMED_STEPS = 12
"""Most steps that are timed; a run with fewer steps is timed whole."""
TIMED_SECONDS = 60.0
"""No further step is begun after this time, once three are done."""
FEWEST_STEPS = 3
STATES = 2
"""Most states of a run that follows unseen texts whose strength is chosen: its best and its last."""


@dataclass(frozen=True)
class Forecast:
    """What a run would take.

    Attributes:
        rows: Set -> rows; `tokens` likewise.
        tokens: Set -> tokens.
        steps: Optimizer steps of the run, the most that it may take where it follows unseen texts.
        follows: Whether it follows unseen texts, so that it may take fewer.
        looks: Most forward passes over the texts that it follows, and that its strength is chosen by.
        step_tokens: Real tokens of all steps together.
        real_share: These over the tokens that are computed, padding included.
        trainable: Parameters of the adapter.
        parameters: Parameters of model and adapter.
        reference_bytes: Size of the cached reference.
        reference_on_disk: Whether it goes to a file.
        peak_memory_bytes: Predicted: of the device's allocator on CUDA, resident of the process on the CPU.
        training_seconds: Predicted time in the training loop.
        total_seconds: Predicted time of the whole run.
        device: Where and in which dtype.
        timed_steps: Steps that the prediction rests on.
    """

    rows: dict[str, int]
    tokens: dict[str, int]
    steps: int
    follows: bool
    looks: int
    step_tokens: int
    real_share: float
    trainable: int
    parameters: int
    reference_bytes: int
    reference_on_disk: bool
    peak_memory_bytes: int
    training_seconds: float
    total_seconds: float
    device: str
    timed_steps: int

    def __str__(self) -> str:
        lines = [
            ("rows", ", ".join(f"{name} {count:,}" for name, count in self.rows.items())),
            ("tokens", ", ".join(f"{name} {count:,}" for name, count in self.tokens.items())),
            ("real share", f"{self.real_share:.1%} of the computed area"),
            ("steps", f"{'at most ' if self.follows else ''}{self.steps:,} ({self.step_tokens:,} tokens)"),
            *([("looks", f"at most {self.looks:,} at the texts that it follows")] if self.follows else []),
            ("trainable parameters", f"{self.trainable:,} of {self.parameters:,}"),
            ("reference", f"{show_bytes(self.reference_bytes)} {'on disk' if self.reference_on_disk else 'in memory'}"),
            ("peak memory", f"{show_bytes(self.peak_memory_bytes)} ({self.device})"),
            ("training time", f"{show_duration(self.training_seconds)} ({self.timed_steps} steps timed)"),
            ("whole run", show_duration(self.total_seconds)),
        ]
        return "\n".join(f"{name:<22}{value}" for name, value in lines)


def forecast(config: UnlearnConfig, reporter: Reporter | None = None) -> Forecast:
    """Prepare a run, time a few of its steps on a throw-away adapter, and write nothing.

    Args:
        config: The settings of the run.
        reporter: Where progress goes; silent when None.

    Raises:
        UserError: As `unlearn` would, before its first step.
    """
    reporter = reporter or Reporter(quiet=True)
    config.validate()
    Run.check(config)
    begun = time.perf_counter()
    prepared = prepare(config, reporter.say)
    for warning in prepared.warnings:
        reporter.warn(warning)
    prepare_seconds = time.perf_counter() - begun
    config, loaded = prepared.config, prepared.loaded

    plan = make_plan(prepared)
    anchors = _stand_ins(prepared, anchor_tokens(prepared, (config.max_steps or plan.num_steps) / plan.steps_per_epoch))
    plan = make_plan(prepared, anchors)
    num_steps = min(plan.num_steps, config.max_steps or plan.num_steps)
    steps = list(islice(plan.steps(), num_steps))
    sets = {name: getattr(prepared, name) for name in SETS if getattr(prepared, name)}
    packed = loaded.packs([len(row) for rows in sets.values() for row in rows])
    max_tokens = MICRO_BATCH_TOKENS[loaded.device.type]
    multiple = loaded.row_multiple if packed else 1
    sizes = [size_of(_lengths(prepared, anchors, step), max_tokens, packed=packed, multiple=multiple) for step in steps]
    sides = reference_sides(config, prepared.forget, prepared.retain, anchors)
    layout = reference.reference_layout(loaded, sides)
    reference_bytes = reference.layout_bytes(layout)
    on_cpu = loaded.device.type == "cpu"
    on_disk = reference_bytes > reference.MEMORY_BYTES

    mean_losses(loaded, {"largest": _largest_batch(sets, packed)})
    sample, own_anchors, places = _sample(prepared, anchors, steps, chosen_steps(sizes, TIMED_STEPS))
    rows = [*prepared.forget, *prepared.retain]
    writing = seconds_per_token(loaded, rows) * sum(map(len, anchors)) if anchors else 0.0
    trainer = Trainer(sample, Accelerator(cpu=on_cpu))
    trainer.anchors = own_anchors
    trainer.check_memory()
    clock = time.perf_counter()
    trainer.compute_reference(Reporter(quiet=True))
    mean_losses(loaded, {"forget": sample.forget, "retain": sample.retain})
    forward_seconds = time.perf_counter() - clock
    timed: list[tuple[Size, float]] = []
    trainer.train_step(places[0][1], 0)
    with reporter.track("timing", len(places) - 1) as advance:
        for index, step in places[1:] or places:
            clock = time.perf_counter()
            trainer.train_step(step, index)
            timed.append((sizes[index], time.perf_counter() - clock))
            advance()
            if len(timed) >= FEWEST_STEPS and sum(seconds for _, seconds in timed) > TIMED_SECONDS:
                break

    passes = 2 * _area(sets.values(), packed) + _area((side.rows for side in sides.values()), packed)
    forward_area = _area([sample.forget, sample.retain], packed) + _area(
        [sample.forget] + [sample.retain] * ("retain_states" in sides or "retain_logps" in sides), packed
    )
    training = training_seconds(sizes, timed)
    looks, looked_at = 0, selection_of(prepared)
    if looked_at is not None:
        looks = num_steps // (config.select_every or usual_spacing(plan)) + STATES * number_of_looks()
        own = (looked_at.members, looked_at.nonmembers, looked_at.retain, looked_at.forget)
        passes += looks * _area(own, packed)
    parameters = [parameter.numel() for parameter in trainer.model.parameters()]
    return Forecast(
        rows={name: len(rows) for name, rows in sets.items()},
        tokens={name: sum(map(len, rows)) for name, rows in sets.items()},
        steps=num_steps,
        follows=config.select_every != 0,
        looks=looks,
        step_tokens=sum(size.tokens for size in sizes),
        real_share=sum(size.tokens for size in sizes) / sum(size.area for size in sizes),
        trainable=sum(parameter.numel() for parameter in trainer.parameters),
        parameters=sum(parameters),
        reference_bytes=reference_bytes,
        reference_on_disk=on_disk,
        peak_memory_bytes=peak_memory(loaded.device) + (reference_bytes if on_cpu and not on_disk else 0),
        training_seconds=training,
        total_seconds=prepare_seconds + writing + passes / forward_area * forward_seconds + training,
        device=f"{config.device}, {config.dtype}",
        timed_steps=len(timed),
    )


def chosen_steps(sizes: Sequence[Size], count: int) -> list[int]:
    """The step with the largest micro-batch, then at most `count` others, spread evenly over the run.

    A run of one step gives that step alone.
    """
    largest = max(range(len(sizes)), key=lambda step: (sizes[step].largest, sizes[step].area))
    others = [step for step in range(len(sizes)) if step != largest]
    count = min(count, len(others))
    return [largest, *(others[(2 * place + 1) * len(others) // (2 * count)] for place in range(count))]


def training_seconds(sizes: Sequence[Size], timed: Sequence[tuple[Size, float]]) -> float:
    """Time of all steps, if a token of area takes as long as in the timed ones."""
    rate = sum(seconds for _, seconds in timed) / sum(size.area for size, _ in timed)
    return rate * sum(size.area for size in sizes)


def _stand_ins(prepared: Prepared, tokens: int) -> list[TokenizedExample]:
    """Rows of the run in place of the anchors that it would write, of about the same size altogether."""
    rows = itertools.cycle([*prepared.retain, *prepared.forget])
    chosen: list[TokenizedExample] = []
    while tokens > 0:
        chosen.append(next(rows))
        tokens -= len(chosen[-1])
    return chosen


def _lengths(prepared: Prepared, anchors: list[TokenizedExample], step: Step) -> list[int]:
    return [len(rows[row]) for side, rows in _sides(prepared, anchors).items() for row in getattr(step, side)]


def _sides(prepared: Prepared, anchors: list[TokenizedExample]) -> dict[str, list[TokenizedExample]]:
    """The rows that steps point into."""
    return {"forget": prepared.forget, "retain": prepared.retain, "anchor": anchors, "instead": prepared.instead}


def _area(sets: Iterable[Sequence[TokenizedExample]], packed: bool) -> int:
    """Area of one forward pass over each set."""
    return sum(size_of([len(row) for row in rows], reference.MAX_TOKENS, packed=packed).area for rows in sets if rows)


def _largest_batch(sets: dict[str, list[TokenizedExample]], packed: bool) -> list[TokenizedExample]:
    """The rows that make up the largest micro-batch of any forward pass."""
    batches = [
        [rows[index] for index in group]
        for rows in sets.values()
        for group in micro_batches([len(row) for row in rows], reference.MAX_TOKENS, packed=packed)
    ]
    return max(batches, key=lambda rows: size_of([len(row) for row in rows], reference.MAX_TOKENS, packed=packed).area)


def _sample(
    prepared: Prepared, anchors: list[TokenizedExample], steps: list[Step], chosen: list[int]
) -> tuple[Prepared, list[TokenizedExample], list[tuple[int, Step]]]:
    """The run and its anchors cut down to the rows of some steps, and these steps over the rows that are left."""
    sides = _sides(prepared, anchors)
    used = {side: sorted({row for index in chosen for row in getattr(steps[index], side)}) for side in sides}
    used["forget"] = used["forget"] or [0]  # at random, no step of them may hold any
    place = {side: {row: at for at, row in enumerate(rows)} for side, rows in used.items()}
    places = [
        (
            index,
            Step(
                steps[index].epoch,
                **{side: [place[side][row] for row in getattr(steps[index], side)] for side in sides},
            ),
        )
        for index in chosen
    ]
    rows = {side: [sides[side][row] for row in used[side]] for side in sides}
    cut = replace(prepared, forget=rows["forget"], retain=rows["retain"], instead=rows["instead"])
    return cut, rows["anchor"], places
