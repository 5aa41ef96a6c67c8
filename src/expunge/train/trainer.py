"""One training step and what it needs: policy, sides with their reference values, plan, optimizer.

A step is a set of rows with a fixed mix of sides, laid out in micro-batches; each micro-batch adds its share to the
gradient, every mean being over the whole step, so neither the layout nor the number of processes matters.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import chain, islice

import torch
from torch import Tensor

from expunge.data.contexts import Contexts
from expunge.data.lowercase import rows_of
from expunge.data.sampler import Size, Step, halved, micro_batches, size_of
from expunge.data.tokenize import TokenizedExample
from expunge.errors import TrainingError
from expunge.losses.collate import SIDES, Counts, SideRows, collate, count
from expunge.losses.terms import Term, loss_terms, terms_of
from expunge.model import memory
from expunge.model.adapter import add_adapter
from expunge.model.flat_adapter import FlatAdapter
from expunge.model.layers import inner_layer, recompute_layers
from expunge.model.logps import final_states, lay_out
from expunge.model.memory import check_fits, saved_bytes
from expunge.model.reference import Asked, check_room, compute_reference, reference_layout
from expunge.model.replay import write_texts
from expunge.train.averaging import MovingAverage
from expunge.train.contexts import contexts_of, settled
from expunge.train.schedule import learning_rate, make_plan, replay_tokens
from expunge.train.setup import Prepared
from expunge.train.step_log import TakenStep, read_steps
from expunge.train.targets import target_values
from expunge.utils.distributed import ALONE, Processes
from expunge.utils.progress import Reporter

MICRO_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}
"""Area of one forward and backward pass, per device type; less where the free memory is small."""
FREE_SHARE = 0.7
"""Of the free memory, what activations may take: the rest is for logits, gradients of activations and fragments."""
FEW_WRITTEN = 0.5
"""Share of the wanted replay texts below which there is a warning."""
ADAPTER, AVERAGE = "adapter.", "average"
"""In a checkpoint: prefix of the adapter and Adam's moments, and the moving average."""
Sides = Mapping[str, SideRows]
Counted = Mapping[str, Counts]
Unit = list[tuple[str, int]]


class Trainer:
    """What a run holds between steps.

    Args:
        prepared: Model and tokenized texts; the adapter is put into the model here.
        processes: Those that share the work.

    Attributes:
        terms: The terms of the loss.
        plan: The rows of every step.
        num_steps: Optimizer steps of the run at most.
        replay_wanted: Tokens of replay texts that it needs.
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
        self.sides = prepared.sides
        self.plan = make_plan(config, self._rows())
        self.contexts: Contexts | None = contexts_of(prepared)
        """What may stand before forget rows; None where they are trained on alone."""
        self.num_steps = min(self.plan.num_steps, config.max_steps or self.plan.num_steps)
        self.replay_wanted = replay_tokens(config, prepared.forget, self.num_steps / self.plan.steps_per_epoch)
        self.most_tokens = MICRO_BATCH_TOKENS[self.loaded.device.type]
        """Area of a micro-batch at most."""
        self.rows_that_fit = 2**31
        """Most rows of a micro-batch, found when the device's memory ran out."""
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
        self.packed = self._packs()
        self.adapter = FlatAdapter(self.loaded)
        self.parameters = self.adapter.parameters
        self.weights = self.adapter.weights.data
        self.average = MovingAverage(self.weights, config.ema_steps)
        self._weights = torch.tensor([*self.columns.values()], dtype=self.weights.dtype, device=self.loaded.device)
        self._nothing = self._weights.new_zeros(())

    def _packs(self) -> bool:
        """Whether the rows of every step share sequences, after other texts, too."""
        after = map(self.contexts.longest, self.sides["forget"].rows) if self.contexts else ()
        return self.loaded.packs([*(len(row) for side in self.sides.values() for row in side.rows), *after])

    def _inner_layer(self) -> torch.nn.Module:
        wanted = int(getattr(self.loss, "layer", -1))
        return inner_layer(self.loaded.base, wanted, lambda: final_states(self.loaded, lay_out(self.loaded, [[0]])))

    def _rows(self) -> dict[str, list[TokenizedExample]]:
        """The rows that are counted in steps: each forget row once, in whatever form it is trained on."""
        return {name: side.rows for name, side in self.sides.items()} | {"forget": self.prepared.forget}

    def check_memory(self) -> None:
        """Choose micro-batches that fit into the free memory, and look whether they do on the CPU.

        What a micro-batch keeps for its backward pass is measured on the longest row and on half of it: most grows with
        the tokens, and what experts keep does not. On a GPU a step that does not fit all the same is repeated in
        smaller parts; on the CPU the system kills who takes more.

        Raises:
            ModelError: Not even the longest row fits.
        """
        device = self.loaded.device
        longest = max((row for side in self.sides.values() for row in side.rows), key=len)
        kept, tokens = self._kept_bytes(longest.input_ids)
        part, fewer = self._kept_bytes(longest.input_ids[: -(-len(longest) // 2)])
        more = (kept - part) / (tokens - fewer) if tokens > fewer and kept > part else math.inf
        per_token = min(kept / tokens, more)
        fixed = int(kept - per_token * tokens)
        to_write = Asked({0: TokenizedExample("replay", [0] * self.replay_wanted, 0)}, "all", ["ref_states"])
        sides = {"replay": to_write} | self.reference_sides()
        held = check_room(reference_layout(self.loaded, sides), self.processes)
        free = memory.free_memory(device)
        if free is not None:
            room = FREE_SHARE * (free - held * (device.type == "cpu")) - fixed
            while self.most_tokens > max(len(longest), room / per_token):
                self.most_tokens //= 2  # and no finer: with nearly as much memory a run takes the same steps
            self.most_tokens = max(len(longest), self.most_tokens)
        self.most_tokens = self.processes.least(self.most_tokens)  # all of them lay a step out, and take their parts
        if device.type == "cpu":
            epoch = islice(self.plan.steps(), self.plan.steps_per_epoch)
            most = max(self.size(step).largest for step in epoch)
            check_fits(
                int(per_token * most) + fixed + held,
                device,
                f"training with {most:,} tokens at once",
                "give --gradient-checkpointing, lower --max-length, or take a larger machine",
            )

    def _kept_bytes(self, ids: list[int]) -> tuple[int, int]:
        """Bytes that a pass over one row keeps, and the tokens of it."""
        batch = lay_out(self.loaded, [ids])
        return saved_bytes(self.model, lambda: final_states(self.loaded, batch)), batch.input_ids.numel()

    def write_replay(self, reporter: Reporter) -> None:
        """Let the untouched model write the replay texts, and plan the steps with them."""
        wanted = self.replay_wanted
        if not wanted:
            return
        with reporter.track("replay texts (tokens)", wanted) as advance:
            written = write_texts(
                self.loaded,
                self.prepared.forget,
                self.prepared.retain,
                tokens=wanted,
                seed=self.config.seed,
                processes=self.processes,
                progress=advance,
            )
        total = sum(map(len, written))
        if total < FEW_WRITTEN * wanted:
            reporter.warn(
                f"the model has written {total:,} tokens of replay texts where {wanted:,} were wanted: the rest "
                "repeats itself or what it should forget"
            )
        self.set_replay(written)

    def set_replay(self, rows: list[TokenizedExample]) -> None:
        """Take replay texts, and plan the steps with them."""
        if rows:
            self.sides["replay"] = SideRows(rows, "all")
        self.plan = make_plan(self.config, self._rows(), rows)
        self.contexts = contexts_of(self.prepared, rows)
        self.packed = self._packs()

    def visited(self, steps: Iterable[Step] | None = None) -> dict[str, list[int]]:
        """Side -> the rows of it that some steps hold, in order; all steps of the run when None."""
        found: dict[str, set[int]] = {name: set() for name in self.sides}
        for step in islice(self.plan.steps(), self.num_steps) if steps is None else steps:
            for name, rows in self.chosen(step).items():
                found[name].update(rows)
            if all(len(found[name]) == len(side.rows) for name, side in self.sides.items()):
                break  # none is left
        return {name: sorted(rows) for name, rows in found.items()}

    def reference_sides(self, steps: Iterable[Step] | None = None) -> dict[str, Asked]:
        """What the terms need of the untouched model, of the rows that are visited: nothing that no term asks for."""
        terms, needs = {term.name for term in self.terms}, self.loss.needs
        asked: dict[str, list[str]] = {
            "forget": [what for what in ("ref_logps", "ref_states") if what in needs],
            "pairs": ["ref_logps"] if "ref_logps" in needs else [],
            "retain": ["ref_states"] if "kl" in terms else [],
            "replay": ["ref_states"] if "replay" in terms else [],
        }
        return {
            name: Asked({row: self.sides[name].rows[row] for row in rows}, self.sides[name].span, asked[name])
            for name, rows in self.visited(steps).items()
            if asked.get(name)
        }

    def compute_reference(self, reporter: Reporter, steps: Iterable[Step] | None = None) -> None:
        """Look with the adapter off at the rows of some steps (when None of all, on `--resume` too: other passes round
        differently), and find the target NLLs; must come before the first step.
        """
        sides = self.reference_sides(steps)
        with reporter.track("reference", sum(len(side.rows) for side in sides.values())) as advance:
            found = compute_reference(self.loaded, sides, processes=self.processes, progress=advance)
        for name, values in found.items():
            self.sides[name].values |= values
        if "target_nll" in self.loss.needs:
            with self.model.disable_adapter():
                forget = self.sides["forget"]
                written = self.sides["replay"].rows if "replay" in self.sides else []
                targets = target_values(self.prepared, written, self.processes, reporter)
                forget.values["target_nll"] = dict(enumerate(targets))
                forget.guessed = self.config.origin is None
                self.contexts, forget.ratio = settled(self.contexts, self.prepared, self.processes, reporter)
            self.packed = self._packs()

    def sides_of(self, step: Step) -> dict[str, SideRows]:
        """The sides as a step sees them: some of its forget rows after other texts."""
        if self.contexts is None:
            return self.sides
        forget = self.sides["forget"]
        rows = list(forget.rows)
        for at in self.chosen(step)["forget"]:
            rows[at] = self.contexts.drawn(rows[at], f"{self.config.seed} {step.number} {at} context")
        return self.sides | {"forget": replace(forget, rows=rows)}

    def chosen(self, step: Step) -> dict[str, list[int]]:
        """Side -> the rows of it that a step holds; pairs go with their forget rows."""
        found = {name: getattr(step, name, []) for name in SIDES if name in self.sides}
        if self.prepared.lower:
            found["forget"] = rows_of(step, self.config.lowercase_share, len(self.prepared.forget), self.config.seed)
        return found | ({"pairs": step.forget} if "pairs" in self.sides else {})

    def units(self, step: Step) -> list[Unit]:
        """What is never divided between micro-batches: single rows, and forget rows with their pairs."""
        chosen = self.chosen(step)
        together = [list(zip(("forget", "pairs"), (row, row), strict=True)) for row in chosen.pop("pairs", [])]
        if together:
            chosen.pop("forget")
        return together + [[(name, row)] for name in SIDES for row in chosen.get(name, ())]

    def lengths(self, step: Step, sides: Sides | None = None) -> list[int]:
        """Area of each unit of a step, in tokens; `sides` are those of the step, where they are there."""
        sides = sides or self.sides_of(step)
        return [self._area([len(sides[name].rows[row]) for name, row in unit]) for unit in self.units(step)]

    def _area(self, lengths: list[int]) -> int:
        return sum(lengths) if self.packed else max(lengths) * len(lengths)

    def micro_batch_tokens(self, lengths: list[int]) -> int:
        """Bound on the area of a micro-batch of a step whose units have these areas.

        What the device takes, and no more than a process's share of the step.
        """
        return min(self.most_tokens, math.ceil(sum(lengths) / self.processes.count))

    def size(self, step: Step) -> Size:
        """Extent of a step as it is laid out here."""
        lengths, multiple = self.lengths(step), self.loaded.row_multiple
        return size_of(lengths, self.micro_batch_tokens(lengths), packed=self.packed, multiple=multiple)

    def train_step(self, step: Step) -> dict[str, float]:
        """One optimizer step and its line of the log, see `take_step` and `read`."""
        return self.read([self.take_step(step)])[0]

    def take_step(self, step: Step) -> TakenStep:
        """One optimizer step, which leaves what the log wants of it on the device: the host does not wait.

        Where a term or the gradient is not finite, the weights are left as they were; `read` tells.
        """
        sides = self.sides_of(step)
        terms = self._sum_over_processes(self.gradient(step, sides))
        rate = learning_rate(self.config, step.number, self.num_steps)
        norm = self.adapter.update(rate, self.config.max_grad_norm, terms)
        self.average.update(step.number + 1)
        return TakenStep(step, rate, sum(self.lengths(step, sides)), torch.cat([terms, norm[None].to(terms)]))

    def read(self, taken: Sequence[TakenStep]) -> list[dict[str, float]]:
        """What the log has of some steps, in one transfer; see `read_steps`.

        Raises:
            TrainingError: One of them is not finite.
        """
        return read_steps(taken, self.columns, self._ids)

    def _ids(self, step: Step) -> list[str]:
        return [self.sides[name].rows[row].id for unit in self.units(step) for name, row in unit]

    def layout(self, step: Step, sides: Sides) -> list[list[Unit]]:
        """The micro-batches of a step, `sides` being those of it."""
        units, lengths = self.units(step), self.lengths(step, sides)
        groups = micro_batches(lengths, self.micro_batch_tokens(lengths), packed=self.packed)
        return [[units[at] for at in group] for group in groups]

    def gradient(self, step: Step, sides: Sides | None = None) -> Tensor:
        """Gradient, and the values `(columns,)`, of this process's share of a step; `sides` as in `lengths`."""
        sides = sides or self.sides_of(step)
        counts = {name: count(sides[name], rows) for name, rows in self.chosen(step).items()}
        own = [group for number, group in enumerate(self.layout(step, sides)) if self.processes.is_own(number)]
        return self._accumulate(sides, own, counts)

    def _accumulate(self, sides: Sides, groups: list[list[Unit]], counts: Counted) -> Tensor:
        """Gradients and `(columns,)` of this process's micro-batches; halved, and done again, until they fit.

        Every mean has the whole step's denominator, so smaller micro-batches give the same sums.

        Raises:
            TrainingError: A single row does not fit into the device's memory.
        """
        parts = (part for group in groups for part in halved(group, self.rows_that_fit))
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
        most = min(max(map(len, groups)), self.rows_that_fit)
        if most == 1:
            longest = max(len(self.sides[name].rows[row]) for group in groups for unit in group for name, row in unit)
            raise TrainingError(
                f"out of memory on {self.loaded.device} with one row at a time (the longest has {longest:,} tokens): "
                "lower --max-length or give --gradient-checkpointing"
            ) from error
        self.rows_that_fit = (most + 1) // 2

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
        return {AVERAGE: self.average.value} | {ADAPTER + name: own for name, own in self.adapter.state().items()}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self.adapter.load_state({n.removeprefix(ADAPTER): v for n, v in tensors.items() if n.startswith(ADAPTER)})
        self.average.value.copy_(tensors[AVERAGE])

    def describe(self) -> str:
        """The size of the run in one line."""
        trained, total = self.model.get_nb_trainable_parameters()
        sizes = [self.size(step) for step in islice(self.plan.steps(), self.plan.steps_per_epoch)]
        share = sum(size.tokens for size in sizes) / sum(size.area for size in sizes)
        return (
            f"steps: {self.num_steps:,} ({self.plan.steps_per_epoch} an epoch, {share:.1%} of the computed "
            f"area real), {self.plan.retain_per_forget:.2f} retain per forget; adapter: {trained:,} of "
            f"{total:,} parameters; {self.config.dtype} on {self.config.device}, learning rate "
            f"{self.config.learning_rate:.2g}"
        )
