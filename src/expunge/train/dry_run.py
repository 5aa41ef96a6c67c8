"""What a run would take, before it is started: sizes from counting, time and memory from a few real steps.

    training time = seconds of the timed steps / their area * area of all steps
    forward time  = seconds of a timed forward pass / its area * (two loss passes, reference pass, evaluation steps)
    whole run     = preparation (done for real) + replay texts + forward time + training time
    peak memory   = peak of this process, which has loaded the model and taken the largest step
                    + the reference, which is in main memory

The area (tokens with the padding) is what the matrix products see. The steps are real ones, taken on a throw-away
adapter; the largest comes first and is not timed, so that nothing is timed while it warms up. The others are timed
together: between them the host does not wait for the device, as in a run.
"""

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from expunge.config import UnlearnConfig
from expunge.data.sampler import Size, Step, size_of
from expunge.data.tokenize import TokenizedExample
from expunge.model.logps import PASS_TOKENS, mean_losses
from expunge.model.reference import layout_bytes, reference_layout
from expunge.model.replay import seconds_per_token
from expunge.runs.run import Run, peak_memory
from expunge.train.before import check_memory, find_reference, reference_sides
from expunge.train.scale import MOST_SCALES
from expunge.train.setup import Prepared, prepare
from expunge.train.speed import speed_up
from expunge.train.trainer import TakenStep, Trainer
from expunge.utils.progress import Reporter
from expunge.utils.text import counted, show_bytes, show_duration

TIMED_STEPS = 12
"""Most steps that are timed; a run with fewer steps is timed whole."""
TIMED_SECONDS = 60.0
"""No further step is begun after this time, once `FEWEST_STEPS` are done."""
FEWEST_STEPS = 3


@dataclass(frozen=True)
class Forecast:
    """What a run would take.

    Attributes:
        rows: Set -> rows; `tokens` likewise.
        tokens: Set -> tokens.
        steps: Optimizer steps of the run, the most that it may take where it stops early.
        stops_early: Whether it may take fewer.
        evaluations: Most evaluation steps, those that choose the adapter's scale included.
        step_tokens: Real tokens of all steps together.
        real_share: These over the tokens that are computed, padding included.
        trainable: Parameters of the adapter.
        parameters: Parameters of model and adapter.
        reference_bytes: Size of the reference.
        peak_memory_bytes: Predicted: of the device's allocator on CUDA, resident of the process on the CPU.
        training_seconds: Predicted time in the training loop.
        total_seconds: Predicted time of the whole run.
        device: Where and in which dtype.
        timed_steps: Steps that the prediction rests on.
    """

    rows: dict[str, int]
    tokens: dict[str, int]
    steps: int
    stops_early: bool
    evaluations: int
    step_tokens: int
    real_share: float
    trainable: int
    parameters: int
    reference_bytes: int
    peak_memory_bytes: int
    training_seconds: float
    total_seconds: float
    device: str
    timed_steps: int

    def __str__(self) -> str:
        most = "at most " if self.stops_early else ""
        lines = [
            ("rows", ", ".join(f"{name} {count:,}" for name, count in self.rows.items())),
            ("tokens", ", ".join(f"{name} {count:,}" for name, count in self.tokens.items())),
            ("real share", f"{self.real_share:.1%} of the computed area"),
            ("steps", f"{most}{self.steps:,} ({self.step_tokens:,} tokens)"),
            *([("evaluation steps", f"at most {self.evaluations:,}")] if self.stops_early else []),
            ("trainable parameters", f"{self.trainable:,} of {self.parameters:,}"),
            ("reference", show_bytes(self.reference_bytes)),
            ("peak memory", f"{show_bytes(self.peak_memory_bytes)} ({self.device})"),
            ("training time", f"{show_duration(self.training_seconds)} ({counted(self.timed_steps, 'step')} timed)"),
            ("whole run", show_duration(self.total_seconds)),
        ]
        return "\n".join(f"{name:<22}{value}" for name, value in lines)


def forecast(config: UnlearnConfig, reporter: Reporter | None = None) -> Forecast:
    """Prepare a run, time a few of its steps on a throw-away adapter, and write nothing.

    Raises:
        UserError: As `unlearn` would, before its first step.
    """
    reporter = reporter or Reporter(quiet=True)
    config = config.changed(dry_run=True)
    config.validate()
    with Run.check(config):
        begun = time.perf_counter()
        prepared = prepare(config, reporter)
        for warning in prepared.warnings:
            reporter.warn(warning)
        return _forecast(prepared, reporter, time.perf_counter() - begun)


def _forecast(prepared: Prepared, reporter: Reporter, prepare_seconds: float) -> Forecast:
    config, loaded = prepared.config, prepared.loaded
    with reporter.working("putting the adapter in, and timing what it writes"):
        trainer = Trainer(prepared)
        check_memory(trainer)
        rows = trainer.rows
        wanted = rows.replay_wanted
        writing = wanted * seconds_per_token(loaded, [*prepared.forget, *prepared.retain]) if wanted else 0.0
    rows.set_replay(_stand_ins(prepared, wanted))  # the run's own texts, of about the size of those to be written
    steps = list(islice(rows.plan.steps(), rows.num_steps))
    sizes = [rows.size(step) for step in steps]
    reference_bytes = layout_bytes(reference_layout(loaded, reference_sides(trainer)))
    passes = _pass_area(trainer, prepared)
    evaluations, evaluated = _evaluations(trainer, prepared)

    taken = [steps[index] for index in chosen_steps(sizes, TIMED_STEPS)]
    # A GPU looks at all rows in seconds, and its passes are made for the whole plan.
    on_cpu = loaded.device.type == "cpu"
    looked_at = taken if on_cpu else steps
    visited = {
        name: [rows.sides[name].rows[row] for row in indices] for name, indices in rows.visited(looked_at).items()
    }
    clock = time.perf_counter()
    with reporter.working("timing the passes over all rows"):
        mean_losses(loaded, visited)
        rate = (time.perf_counter() - clock) / sum(_area(side, rows.packed) for side in visited.values())
        clock = time.perf_counter()
        find_reference(trainer, Reporter(silent=True), looked_at)  # with the target NLLs of all texts to forget
    targets = max(0.0, time.perf_counter() - clock - rate * _reference_area(trainer, looked_at))
    clock = time.perf_counter()
    if line := speed_up(trainer):
        reporter.say(line)
    prepare_seconds += time.perf_counter() - clock
    timed, seconds = _time_steps(trainer, taken, reporter)

    trainable, parameters = trainer.model.get_nb_trainable_parameters()
    training = training_seconds(sizes, [sizes[step.number] for step in timed], seconds)
    forward = targets + rate * (passes + evaluations * evaluated)
    held = reference_bytes if on_cpu else 0
    return Forecast(
        rows={name: len(rows) for name, rows in prepared.sets.items() if rows},
        tokens={name: sum(map(len, rows)) for name, rows in prepared.sets.items() if rows},
        steps=len(steps),
        stops_early=bool(evaluations),
        evaluations=evaluations,
        step_tokens=sum(size.tokens for size in sizes),
        real_share=sum(size.tokens for size in sizes) / sum(size.area for size in sizes),
        trainable=trainable,
        parameters=parameters,
        reference_bytes=reference_bytes,
        peak_memory_bytes=peak_memory(loaded.device) + held,
        training_seconds=training,
        total_seconds=prepare_seconds + writing + forward + training,
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


def training_seconds(sizes: Sequence[Size], timed: Sequence[Size], seconds: float) -> float:
    """Time of all steps, if a token of area takes as long as in the timed ones, which took `seconds` together."""
    return seconds / sum(size.area for size in timed) * sum(size.area for size in sizes)


def _time_steps(trainer: Trainer, steps: list[Step], reporter: Reporter) -> tuple[list[Step], float]:
    """Those of the steps that were timed, and the seconds that they took together."""
    trainer.train_step(steps[0])
    left = steps[1:] or steps
    taken: list[TakenStep] = []
    begun = time.perf_counter()
    with reporter.track("timing", len(left)) as advance:
        for step in left:
            taken.append(trainer.take_step(step))
            advance()
            if len(taken) >= FEWEST_STEPS and time.perf_counter() - begun > TIMED_SECONDS:
                break
        trainer.read(taken)  # waits for the device
    return left[: len(taken)], time.perf_counter() - begun


def _evaluations(trainer: Trainer, prepared: Prepared) -> tuple[int, int]:
    """Most evaluation steps of the run, and the area of one; none where it is not evaluated."""
    rows = prepared.validation
    if rows is None:
        return 0, 0
    every = trainer.rows.evaluation_every(rows)
    return 1 + math.ceil(trainer.rows.num_steps / every) + MOST_SCALES, _area(rows.all, trainer.rows.packed)


def _pass_area(trainer: Trainer, prepared: Prepared) -> int:
    """Area of the passes for the losses before and after, and for the reference."""
    told = sum(_area(rows, trainer.rows.packed) for rows in prepared.told.values())
    return 2 * told + _reference_area(trainer)


def _reference_area(trainer: Trainer, steps: Sequence[Step] | None = None) -> int:
    """Area of the passes for the reference of some steps, or of all."""
    return sum(_area([*side.rows.values()], trainer.rows.packed) for side in reference_sides(trainer, steps).values())


def _area(rows: Sequence[TokenizedExample], packed: bool) -> int:
    """Area of one forward pass over rows."""
    return size_of([len(row) for row in rows], PASS_TOKENS["cpu"], packed=packed).area if rows else 0


def _stand_ins(prepared: Prepared, tokens: int) -> list[TokenizedExample]:
    """Rows of the run in place of the replay texts that it would write, of about the same size altogether."""
    rows = itertools.cycle([*prepared.retain, *prepared.forget])
    chosen: list[TokenizedExample] = []
    while tokens > 0:
        chosen.append(next(rows))
        tokens -= len(chosen[-1])
    return chosen
