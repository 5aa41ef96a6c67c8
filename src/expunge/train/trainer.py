"""One training step: forward and backward passes, the update, the line of the log.

A step is a set of rows with a fixed mix of sides, laid out in micro-batches (`StepRows`); each micro-batch adds its
share to the gradient, every mean being over the whole step, so neither the layout nor the number of processes matters.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain, islice

import torch
from torch import Tensor

from expunge.data.sampler import Step, halved
from expunge.errors import TrainingError
from expunge.losses.collate import SIDES, Counts, collate, count
from expunge.losses.terms import Term, loss_terms, terms_of
from expunge.model.adapter import add_adapter
from expunge.model.flat_adapter import FlatAdapter
from expunge.model.layers import inner_layer, recompute_layers
from expunge.model.logps import final_states, lay_out
from expunge.train.averaging import MovingAverage
from expunge.train.schedule import learning_rate
from expunge.train.setup import Prepared
from expunge.train.step_rows import Sides, StepRows, Unit
from expunge.utils.distributed import ALONE, Processes

ADAPTER, AVERAGE = "adapter.", "average"
"""In a checkpoint: prefix of the adapter and Adam's moments, and the moving average."""
AT_ITS_END = 1e-3
"""Of a term up to this the gradient may be zero: it is where it should be, but for rounding."""
STEPS_PER_READ = {"cpu": 1, "cuda": 16}
"""Most steps between two reads of what is logged, per device type: with each of them a GPU runs empty."""
Counted = Mapping[str, Counts]


@dataclass(frozen=True)
class TakenStep:
    """A step that was taken; what the log has of it stays on the device until some steps are read together.

    Attributes:
        step: Its rows.
        rate: Its learning rate.
        tokens: Area of its rows, in tokens.
        values: `(columns + 1,)` on the device: terms, what the loss notes, and the gradient's norm before clipping.
    """

    step: Step
    rate: float
    tokens: int
    values: Tensor


class Trainer:
    """What a run holds between steps.

    Args:
        prepared: Model and tokenized texts; the adapter is put into the model here.
        processes: Those that share the work.

    Attributes:
        terms: The terms of the loss.
        rows: The rows that it trains on, those of each step, and how these are laid out.
        parameters: The adapter's matrices.
        weights: All of them in one tensor.
        average: Their moving average, which is evaluated and kept.
    """

    def __init__(self, prepared: Prepared, processes: Processes = ALONE) -> None:
        self.prepared, self.loaded, self.loss, self.processes = prepared, prepared.loaded, prepared.loss, processes
        self.config = config = prepared.config
        self.terms: list[Term] = terms_of(config, self.loss)
        self.columns = {term.name: term.weight for term in self.terms} | dict.fromkeys(self.loss.columns, 0.0)
        """What is logged of a step: each term -> its weight, and what the forget loss notes beside -> 0."""
        self.model = add_adapter(
            self.loaded,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            modules=config.target_modules,
            seed=config.seed,
        )
        self.layer = self._inner_layer() if "hidden" in self.loss.needs else None
        if config.gradient_checkpointing:
            recompute_layers(self.loaded.base)
        self.rows = StepRows(prepared, processes)
        self.adapter = FlatAdapter(self.loaded)
        self.parameters = self.adapter.parameters
        self.weights = self.adapter.weights.data
        self.average = MovingAverage(self.weights, config.ema_steps)
        self._weights = torch.tensor([*self.columns.values()], dtype=self.weights.dtype, device=self.loaded.device)
        self._nothing = self._weights.new_zeros(())

    def _inner_layer(self) -> torch.nn.Module:
        wanted = int(getattr(self.loss, "layer", -1))
        return inner_layer(self.loaded.base, wanted, lambda: final_states(self.loaded, lay_out(self.loaded, [[0]])))

    def train_step(self, step: Step) -> dict[str, float]:
        """One optimizer step and its line of the log, see `take_step` and `read`."""
        return self.read([self.take_step(step)])[0]

    def take_step(self, step: Step) -> TakenStep:
        """One optimizer step, which leaves what the log wants of it on the device: the host does not wait.

        Where a term or the gradient is not finite, the weights are left as they were; `read` tells.
        """
        sides = self.rows.sides_of(step)
        terms = self._sum_over_processes(self.gradient(step, sides))
        rate = learning_rate(self.config, step.number, self.rows.num_steps)
        norm = self.adapter.update(rate, self.config.max_grad_norm, terms)
        self.average.update(step.number + 1)
        return TakenStep(step, rate, sum(self.rows.lengths(step, sides)), torch.cat([terms, norm[None].to(terms)]))

    def read(self, taken: Sequence[TakenStep]) -> list[dict[str, float]]:
        """What the log has of some steps, in one transfer.

        Returns:
            For each the loss, its columns (means over the step's denominators, before the update; 0 for a side without
            rows), the gradient's norm before clipping and the learning rate.

        Raises:
            TrainingError: A term or the gradient of one of them is not finite, or that of the first is zero.
        """
        lines = []
        for entry, values in zip(taken, torch.stack([entry.values for entry in taken]).tolist(), strict=True):
            line = dict(zip([*self.columns, "grad_norm"], values, strict=True))
            if not all(map(math.isfinite, values)):
                shown = ", ".join(f"{name} {value:.4g}" for name, value in line.items())
                raise TrainingError(
                    f"step {entry.step.number + 1} is not finite ({shown}); rows {', '.join(self.rows.ids(entry.step))}"
                    ": lower --learning-rate or look at these rows; checkpoints up to here are good"
                )
            far = [name for name, weight in self.columns.items() if weight and abs(line[name]) > AT_ITS_END]
            if entry.step.number == 0 and not line["grad_norm"] and far:
                raise TrainingError(
                    "step 1 has no gradient: nothing that the loss looks at depends on the adapter; look at "
                    "--target-modules"
                )
            loss = sum(weight * line[name] for name, weight in self.columns.items())
            lines.append({"loss": loss, **line, "learning_rate": entry.rate})
        return lines

    def gradient(self, step: Step, sides: Sides | None = None) -> Tensor:
        """Gradient, and the values `(columns,)`, of this process's share of a step; `sides` are those of it."""
        sides = sides or self.rows.sides_of(step)
        counts = {name: count(sides[name], rows) for name, rows in self.rows.chosen(step).items()}
        groups = [group for number, group in enumerate(self.rows.layout(step, sides)) if self.processes.is_own(number)]
        return self._accumulate(sides, groups, counts)

    def _accumulate(self, sides: Sides, groups: list[list[Unit]], counts: Counted) -> Tensor:
        """Gradients and `(columns,)` of this process's micro-batches; halved, and done again, until they fit.

        Every mean has the whole step's denominator, so smaller micro-batches give the same sums.

        Raises:
            TrainingError: A single row does not fit into the device's memory.
        """
        parts = (part for group in groups for part in halved(group, self.rows.most_rows))
        self.adapter.gradients.zero_()
        try:
            found = [self._backward(sides, list(chain.from_iterable(part)), counts) for part in parts]
        except torch.OutOfMemoryError as error:
            if self.loaded.captured is None:
                self._halve(groups, error)
            self.loaded.give_up_graphs()
        else:
            self.loaded.join()
            return reduce(torch.add, found) if found else torch.zeros_like(self._weights)
        torch.cuda.empty_cache()  # outside of the handler, which holds the tensors of the failed pass
        return self._accumulate(sides, groups, counts)

    def _backward(self, sides: Sides, places: Unit, counts: Counted) -> Tensor:
        """Forward and backward pass of one micro-batch; gives its share in each term, on the device."""
        rows = {name: [row for side, row in places if side == name] for name in SIDES}
        found = loss_terms(collate(self.loaded, sides, rows, counts, self.layer), self.loss)
        values = torch.stack([found.get(name, self._nothing) for name in self.columns])
        values.backward(self._weights.to(values))
        return values.detach().to(self._weights)

    def _halve(self, groups: list[list[Unit]], error: BaseException) -> None:
        """Allow half as many rows at once.

        Raises:
            TrainingError: There is nothing to halve, or processes wait in the middle of their passes.
        """
        if self.loaded.lockstep is not None:
            raise TrainingError(
                f"out of memory on {self.loaded.device}: with --shard-base a step cannot be repeated in smaller parts; "
                "lower --tokens-per-step or --max-length, or give --gradient-checkpointing; --resume goes on"
            ) from error
        most = min(max(map(len, groups)), self.rows.most_rows)
        if most == 1:
            sides = self.rows.sides
            longest = max(len(sides[name].rows[row]) for group in groups for unit in group for name, row in unit)
            raise TrainingError(
                f"out of memory on {self.loaded.device} with one row at a time (the longest has {longest:,} tokens): "
                "lower --max-length or give --gradient-checkpointing"
            ) from error
        self.rows.most_rows = (most + 1) // 2

    def _sum_over_processes(self, terms: Tensor) -> Tensor:
        """Sum gradients and terms: an adapter's gradient is small, so one reduction carries all of it."""
        if self.processes.count == 1:
            return terms
        flat = self.processes.total(torch.cat([terms, self.adapter.gradients]))
        total, gradients = torch.split(flat, [len(terms), len(self.adapter.gradients)])
        self.adapter.gradients.copy_(gradients)
        return total

    def state(self) -> dict[str, Tensor]:
        """Everything that a later step depends on: the adapter, Adam's moments, the moving average.

        The plan and the replay texts follow from the seed.
        """
        return {AVERAGE: self.average.value} | {ADAPTER + name: tensor for name, tensor in self.adapter.state().items()}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self.adapter.load_state({n.removeprefix(ADAPTER): v for n, v in tensors.items() if n.startswith(ADAPTER)})
        self.average.value.copy_(tensors[AVERAGE])

    def describe(self) -> str:
        """The size of the run in one line."""
        trained, total = self.model.get_nb_trainable_parameters()
        rows, plan = self.rows, self.rows.plan
        sizes = [rows.size(step) for step in islice(plan.steps(), plan.steps_per_epoch)]
        share = sum(size.tokens for size in sizes) / sum(size.area for size in sizes)
        return (
            f"steps: {rows.num_steps:,} ({plan.steps_per_epoch} an epoch, {share:.1%} of the computed "
            f"area real), {plan.retain_per_forget:.2f} retain per forget; adapter: {trained:,} of "
            f"{total:,} parameters; {self.config.dtype} on {self.config.device}, learning rate "
            f"{self.config.learning_rate:.2g}"
        )
