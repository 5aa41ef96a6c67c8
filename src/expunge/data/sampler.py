"""Which rows go into which optimizer step, and how a step is laid out in micro-batches.

The two questions are apart on purpose: a step is a set of rows with a token budget and a fixed forget:retain mix; the
layout (rows of like length side by side, so that hardly any padding is computed) never changes what the step computes.
Everything follows from the seed, so a run is resumed by skipping the steps that it has done.
"""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

Item = TypeVar("Item")
BUCKETS_PER_STEP = 2
"""Stretches of rows of like length per side and step: more of them mix lengths better, fewer pad less."""
MAX_PADDING = 0.05
"""A micro-batch is closed when the next row would raise its padded share above this."""


@dataclass(frozen=True)
class Step:
    """The rows of one optimizer step, as indices into forget set, retain set, replay texts and what to say instead.

    Attributes:
        epoch: Its pass over the forget set, from 0.
        number: Its place among the steps of the run, from 0.
    """

    epoch: int
    forget: list[int]
    retain: list[int]
    replay: list[int] = field(default_factory=list)
    instead: list[int] = field(default_factory=list)
    number: int = 0


class Plan:
    """The steps of a run: an epoch passes over the forget set once, the other sides are gone through as streams.

    Retain tokens (rows) per forget token (row) are those of the two sets, or what fits into the budget beside a single
    forget row where that is less (an epoch then sees a part of the retain set).

    Args:
        forget_lengths: Tokens of each forget row.
        retain_lengths: Tokens of each retain row; empty for a run without retain terms.
        epochs: Passes over the forget set; more of them where they have less than `least_steps`.
        least_steps: Optimizer steps of the whole run at the least.
        tokens_per_step: Budget of one step, both sides together.
        rows_per_step: Count rows instead of tokens when given.
        replay_lengths: Tokens of each replay text; as many tokens (rows) as of forget rows come on top of the budget.
        instead_lengths: Tokens of each text to say instead; all of them once an epoch, at least one a step; they
            come on top of the budget.
        seed: Seed of all shuffling.
    """

    def __init__(
        self,
        forget_lengths: Sequence[int],
        retain_lengths: Sequence[int],
        *,
        epochs: int,
        least_steps: int = 0,
        tokens_per_step: int,
        rows_per_step: int | None = None,
        replay_lengths: Sequence[int] = (),
        instead_lengths: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        self.seed, self._by_rows = seed, rows_per_step is not None
        self._forget_costs, self._retain_costs, self._replay_costs, self._instead_costs = (
            [1] * len(lengths) if self._by_rows else list(lengths)
            for lengths in (forget_lengths, retain_lengths, replay_lengths, instead_lengths)
        )
        forget_total, retain_total = sum(self._forget_costs), sum(self._retain_costs)
        self.retain_per_forget = 0.0
        budget = tokens_per_step if rows_per_step is None else rows_per_step
        if retain_total:
            fits = max(1.0, budget * len(forget_lengths) / forget_total - 1)
            self.retain_per_forget = min(retain_total / forget_total, fits)
        forget_budget = max(1.0, budget / (1 + self.retain_per_forget))
        self.steps_per_epoch = min(len(forget_lengths), max(1, math.ceil(forget_total / forget_budget - 1e-9)))
        self.epochs = max(epochs, math.ceil(least_steps / self.steps_per_epoch))
        self._forget_bucket = forget_total / self.steps_per_epoch / BUCKETS_PER_STEP

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    def steps(self) -> Iterator[Step]:
        """All steps of the run, in order."""
        retain = self._stream("retain", self._retain_costs, self.retain_per_forget)
        replay = self._stream("replay", self._replay_costs, 1.0)
        instead = self._stream("instead", self._instead_costs, sum(self._instead_costs) / sum(self._forget_costs))
        forget_cost = 0.0
        per_step = sum(self._forget_costs) / self.steps_per_epoch
        for epoch in range(self.epochs):
            forget = self._order(self._forget_costs, self._forget_bucket, f"forget {epoch}")
            done, end = 0, float(epoch * sum(self._forget_costs))
            for index in range(self.steps_per_epoch):
                end += per_step
                steps_left = self.steps_per_epoch - index - 1
                step = Step(epoch, [], [], number=epoch * self.steps_per_epoch + index)
                while len(forget) - done > steps_left and (
                    not step.forget or not steps_left or forget_cost + self._forget_costs[forget[done]] / 2 <= end
                ):
                    step.forget.append(forget[done])
                    forget_cost += self._forget_costs[forget[done]]
                    done += 1
                step.retain.extend(retain.up_to(forget_cost))
                step.replay.extend(replay.up_to(forget_cost))
                step.instead.extend(instead.up_to(forget_cost))
                yield step

    def _stream(self, name: str, costs: Sequence[int], per_forget: float) -> "_Stream":
        """The rows of a side again and again, in a new order each time."""
        bucket = self._forget_bucket * per_forget
        rows = (self._order(costs, bucket, f"{name} {turn}") for turn in itertools.count())
        return _Stream(itertools.chain.from_iterable(rows) if any(costs) else iter(()), costs, per_forget)

    def _order(self, costs: Sequence[int], bucket: float, name: str) -> list[int]:
        """All rows of one side, shuffled, yet with rows of like length side by side in stretches of one bucket."""
        rng = random.Random(f"{self.seed} {name}")
        rows = list(range(len(costs)))
        rng.shuffle(rows)
        if self._by_rows:
            return rows
        rows.sort(key=lambda row: costs[row] * rng.uniform(0.97, 1.03))
        stretches: list[list[int]] = [[]]
        filled = bucket * rng.random()  # another cut every time, so that the stretches' members change
        for row in rows:
            if filled >= bucket and stretches[-1]:
                stretches.append([])
                filled = 0.0
            stretches[-1].append(row)
            filled += costs[row]
        rng.shuffle(stretches)
        return [row for stretch in stretches for row in stretch]


class _Stream:
    """Rows handed out in proportion to what the forget rows have cost; at least one a step."""

    def __init__(self, rows: Iterator[int], costs: Sequence[int], per_forget: float) -> None:
        self._rows, self._costs, self._per_forget = rows, costs, per_forget
        self._next = next(rows, None)
        self._cost = 0.0

    def up_to(self, forget_cost: float) -> list[int]:
        """The rows that come next, when the forget rows so far have cost so much."""
        found: list[int] = []
        while self._next is not None and (
            not found or self._cost + self._costs[self._next] / 2 <= forget_cost * self._per_forget
        ):
            found.append(self._next)
            self._cost += self._costs[self._next]
            self._next = next(self._rows, None)
        return found


def halved(group: list[Item], most: int) -> Iterator[list[Item]]:
    """The same items in parts of at most `most`, by halving."""
    if len(group) <= most:
        yield group
        return
    middle = (len(group) + 1) // 2
    yield from halved(group[:middle], most)
    yield from halved(group[middle:], most)


def micro_batches(lengths: Sequence[int], max_tokens: int, *, packed: bool = False) -> list[list[int]]:
    """Group rows: indices into `lengths`, at most `max_tokens` of area each (or a single row).

    Longest first, so that the largest memory need comes first.

    Args:
        lengths: Tokens of each row.
        max_tokens: Bound on the area.
        packed: The area of a group is the sum of its lengths, every group is filled; else it is its longest row times
            its rows, and rows of like length stand together so that little of it is padding.
    """
    groups: list[list[int]] = []
    real = 0
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        longest = lengths[groups[-1][0]] if groups else 0
        padded = longest * (len(groups[-1]) + 1) if groups else 0
        area = real + lengths[row] if packed else padded
        if not groups or area > max_tokens or area - real - lengths[row] > MAX_PADDING * area:
            groups.append([])
            real = 0
        groups[-1].append(row)
        real += lengths[row]
    return groups


@dataclass(frozen=True)
class Size:
    """Extent of one step or pass.

    Attributes:
        tokens: Real tokens.
        area: Tokens that are computed, padding included.
        largest: Area of its largest micro-batch, in tokens.
    """

    tokens: int
    area: int
    largest: int


def size_of(lengths: Sequence[int], max_tokens: int, *, packed: bool = False, multiple: int = 1) -> Size:
    """Extent of rows of `lengths` tokens, laid out by `micro_batches`; packed ones are rounded up to a `multiple`."""
    areas = [
        math.ceil(sum(lengths[row] for row in group) / multiple) * multiple
        if packed
        else max(lengths[row] for row in group) * len(group)
        for group in micro_batches(lengths, max_tokens, packed=packed)
    ]
    return Size(sum(lengths), sum(areas), max(areas))
