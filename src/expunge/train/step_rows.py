"""The rows of a step: which they are, what stands before them, and how they are laid out in micro-batches."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice

from expunge.data.contexts import Contexts
from expunge.data.lowercase import rows_of
from expunge.data.sampler import Size, Step, micro_batches, size_of
from expunge.data.tokenize import TokenizedExample
from expunge.losses.collate import SIDES, SideRows
from expunge.train.contexts import contexts_of
from expunge.train.schedule import evaluation_spacing, make_plan, replay_tokens
from expunge.train.setup import Prepared
from expunge.train.validation import ValidationRows
from expunge.utils.distributed import ALONE, Processes

MICRO_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}
"""Area of one forward and backward pass, per device type; less where the free memory is small."""
Sides = Mapping[str, SideRows]
Unit = list[tuple[str, int]]
"""Places, each a side and a row of it, that stay in one micro-batch."""


class StepRows:
    """The rows that a run trains on, which of them each step holds, and how a step is laid out on this device.

    Args:
        prepared: Model and tokenized texts.
        processes: Those that share the work.

    Attributes:
        sides: Side -> its rows, and what the untouched model gave for them.
        plan: The rows of every step.
        contexts: What may stand before forget rows; None where they are trained on alone.
        packed: Whether the rows of every step share sequences, after other texts, too.
        num_steps: Optimizer steps of the run at most.
        replay_wanted: Tokens of replay texts that it needs.
        most_tokens: Area of a micro-batch at most.
        most_rows: Most rows of a micro-batch, found when the device's memory ran out.
    """

    def __init__(self, prepared: Prepared, processes: Processes = ALONE) -> None:
        self.prepared, self.loaded, self.config = prepared, prepared.loaded, prepared.config
        self.processes = processes
        self.sides = prepared.sides
        self.set_replay([])
        self.num_steps = min(self.plan.num_steps, self.config.max_steps or self.plan.num_steps)
        epochs = self.num_steps / self.plan.steps_per_epoch
        self.replay_wanted = replay_tokens(self.config, prepared.forget, epochs)
        self.most_tokens = MICRO_BATCH_TOKENS[self.loaded.device.type]
        self.most_rows = 2**31

    def set_replay(self, written: list[TokenizedExample]) -> None:
        """Take replay texts, and plan the steps with them."""
        if written:
            self.sides["replay"] = SideRows(written, "all")
        # Each forget row counts once, in whatever form it is trained on.
        counted = {name: side.rows for name, side in self.sides.items()} | {"forget": self.prepared.forget}
        self.plan = make_plan(self.config, counted)
        self.set_contexts(contexts_of(self.prepared, written))

    def set_contexts(self, contexts: Contexts | None) -> None:
        """Take what may stand before forget rows."""
        self.contexts = contexts
        after = map(contexts.longest, self.sides["forget"].rows) if contexts else ()
        self.packed = self.loaded.packs([*(len(row) for side in self.sides.values() for row in side.rows), *after])

    def chosen(self, step: Step) -> dict[str, list[int]]:
        """Side -> the rows of it that a step holds; pairs go with their forget rows."""
        found = {name: getattr(step, name, []) for name in SIDES if name in self.sides}
        if self.prepared.lower:
            found["forget"] = rows_of(step, self.config.lowercase_share, len(self.prepared.forget), self.config.seed)
        return found | ({"pairs": step.forget} if "pairs" in self.sides else {})

    def visited(self, steps: Iterable[Step] | None = None) -> dict[str, list[int]]:
        """Side -> the rows of it that some steps hold, in order; all steps of the run when None."""
        found: dict[str, set[int]] = {name: set() for name in self.sides}
        for step in islice(self.plan.steps(), self.num_steps) if steps is None else steps:
            for name, rows in self.chosen(step).items():
                found[name].update(rows)
            if all(len(found[name]) == len(side.rows) for name, side in self.sides.items()):
                break  # none is left
        return {name: sorted(rows) for name, rows in found.items()}

    def sides_of(self, step: Step) -> dict[str, SideRows]:
        """The sides as a step sees them: some of its forget rows after other texts."""
        if self.contexts is None:
            return self.sides
        forget = self.sides["forget"]
        rows = list(forget.rows)
        for at in self.chosen(step)["forget"]:
            rows[at] = self.contexts.drawn(rows[at], f"{self.config.seed} {step.number} {at} context")
        return self.sides | {"forget": replace(forget, rows=rows)}

    def units(self, step: Step) -> list[Unit]:
        """What is never divided between micro-batches: single rows, and forget rows with their pairs."""
        chosen = self.chosen(step)
        together = [[("forget", row), ("pairs", row)] for row in chosen.pop("pairs", [])]
        if together:
            chosen.pop("forget")
        return together + [[(name, row)] for name in SIDES for row in chosen.get(name, ())]

    def ids(self, step: Step) -> list[str]:
        """Ids of the rows of a step."""
        return [self.sides[name].rows[row].id for unit in self.units(step) for name, row in unit]

    def lengths(self, step: Step, sides: Sides | None = None) -> list[int]:
        """Area of each unit of a step, in tokens; `sides` are those of the step, where they are there."""
        sides = sides or self.sides_of(step)
        rows = [[len(sides[name].rows[row]) for name, row in unit] for unit in self.units(step)]
        return [sum(lengths) if self.packed else max(lengths) * len(lengths) for lengths in rows]

    def micro_batch_tokens(self, lengths: list[int]) -> int:
        """Bound on the area of a micro-batch of a step whose units have these areas.

        What the device takes, and no more than a process's share of the step.
        """
        return min(self.most_tokens, math.ceil(sum(lengths) / self.processes.count))

    def size(self, step: Step) -> Size:
        """Extent of a step as it is laid out here."""
        lengths, multiple = self.lengths(step), self.loaded.row_multiple
        return size_of(lengths, self.micro_batch_tokens(lengths), packed=self.packed, multiple=multiple)

    def layout(self, step: Step, sides: Sides) -> list[list[Unit]]:
        """The micro-batches of a step, `sides` being those of it."""
        units, lengths = self.units(step), self.lengths(step, sides)
        groups = micro_batches(lengths, self.micro_batch_tokens(lengths), packed=self.packed)
        return [[units[at] for at in group] for group in groups]

    def evaluation_every(self, evaluated: ValidationRows) -> int:
        """Steps between two evaluation steps of the run."""
        if self.config.eval_every:
            return self.config.eval_every
        steps = [sum(self.lengths(step)) for step in islice(self.plan.steps(), self.plan.steps_per_epoch)]
        return evaluation_spacing(self.plan, sum(map(len, evaluated.all)), sum(steps) / len(steps))

    def batch_lengths(self, step: Step) -> list[list[int]]:
        """Lengths of the rows of each micro-batch of a step."""
        sides = self.sides_of(step)
        return [
            [len(sides[name].rows[row]) for unit in group for name, row in unit] for group in self.layout(step, sides)
        ]
