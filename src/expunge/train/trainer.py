"""One training step and what it needs: policy, reference values, anchors, optimizer.

A step is a set of rows with a fixed mix of sides, laid out in micro-batches; each micro-batch adds its share to the
gradient, every mean being over the whole step, so neither the layout nor the number of processes matters.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from expunge.data.sampler import Size, Step, halved, micro_batches, size_of
from expunge.data.tokenize import TokenizedExample
from expunge.errors import TrainingError
from expunge.model.adapter import add_adapter, recompute_layers, trainable
from expunge.model.logps import final_states, lay_out
from expunge.model.memory import check_fits, saved_bytes
from expunge.model.reference import MEMORY_BYTES, RowValues, compute_reference, layout_bytes, reference_layout
from expunge.model.replay import write_texts
from expunge.train.early_stopping import Selector, selection_of
from expunge.train.schedule import anchor_tokens, epoch_length, learning_rate, make_plan, usual_spacing
from expunge.train.setup import Prepared
from expunge.train.terms import (
    SIDES,
    TERMS,
    Aim,
    Counts,
    Row,
    SideName,
    count,
    loss_terms,
    reference_sides,
    weighted_sum,
)
from expunge.train.validation import Meter
from expunge.utils.distributed import ALONE, Processes
from expunge.utils.progress import Reporter

MICRO_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}
"""Area of one forward and backward pass, per device type."""


class Trainer:
    """What a run holds between steps: policy, reference values, plan, optimizer.

    Args:
        prepared: Model and tokenized texts; the adapter is put into the model here.
        accelerator: The processes that share the work.
    """

    def __init__(self, prepared: Prepared, accelerator: Accelerator) -> None:
        self.config, self.loaded, self.accelerator = prepared.config, prepared.loaded, accelerator
        self.forget, self.retain, self.instead = prepared.forget, prepared.retain, prepared.instead
        self.anchors: list[TokenizedExample] = []
        self.selector: Selector | None = None
        self.selection_hashes: list[str] = []
        config = self.config
        self.plan = make_plan(prepared)
        self.num_steps = min(self.plan.num_steps, config.max_steps or self.plan.num_steps)
        self.select_every = config.select_every or usual_spacing(self.plan)
        self.reference: dict[str, RowValues] = {}
        self.rows_that_fit = 2**31
        """Most rows of a micro-batch, found when the device's memory ran out."""
        self.model = add_adapter(
            self.loaded,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            modules=config.target_modules,
            seed=config.seed,
        )
        if config.gradient_checkpointing:
            recompute_layers(self.loaded)
        self.packed = self.loaded.packs([len(row) for row in [*self.forget, *self.retain, *self.instead]])
        self.parameters = trainable(self.model)
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.learning_rate or 0.0)

    def check_memory(self) -> None:
        """Look whether the largest micro-batch and the reference fit on the CPU, where the system kills who takes more.

        What a micro-batch keeps for its backward pass is measured on the longest row and scaled by the tokens.

        Raises:
            ModelError: They do not.
        """
        if self.loaded.device.type != "cpu":
            return  # there, a step that does not fit is repeated in smaller parts
        longest = max([*self.forget, *self.retain, *self.instead], key=len)
        batch = lay_out(self.loaded, [longest.input_ids])
        kept = saved_bytes(self.model, lambda: final_states(self.loaded, batch))
        epoch = islice(self.plan.steps(), self.plan.steps_per_epoch)
        most = max(self.size(step).largest for step in epoch)
        layout = reference_layout(self.loaded, reference_sides(self.config, self.forget, self.retain, self.anchors))
        needed = kept * most // batch.input_ids.numel() + min(layout_bytes(layout), MEMORY_BYTES)
        check_fits(
            needed,
            self.loaded.device,
            f"training with {most:,} tokens at once",
            "give --gradient-checkpointing, lower --tokens-per-step or --max-length, or take a larger machine",
        )

    def write_anchors(self, prepared: Prepared, reporter: Reporter, processes: Processes) -> None:
        """Let the untouched model write the anchors, and get ready to look at the selection texts."""
        config = self.config
        epochs = self.num_steps / self.plan.steps_per_epoch
        wanted = anchor_tokens(prepared, epochs)
        written: list[TokenizedExample] = []
        if wanted:
            with reporter.track("anchors (tokens)", wanted) as advance:
                written = write_texts(
                    self.loaded, self.forget, self.retain, tokens=wanted, seed=config.seed,
                    processes=processes, progress=advance,
                )  # fmt: skip
        selection = selection_of(prepared)
        if selection is not None and prepared.selection is not None:
            self.selection_hashes = prepared.selection.hashes
            self.selector = Selector(
                Meter(self.loaded, selection, processes),
                config.goal,
                beta=config.beta,
                parameters=self.parameters,
                epoch=epoch_length(self.plan),
                pace=self.select_every / usual_spacing(self.plan),
            )
        self.anchors = written
        self.plan = make_plan(prepared, written)

    def compute_reference(
        self, reporter: Reporter, cache: Path | None = None, key: str = "", processes: Processes = ALONE
    ) -> None:
        """Look once at all rows with the adapter off; must come before the first step.

        Args:
            reporter: Told about the pass.
            cache: Folder for a reference that is too large for the memory; in memory whatever its size when None.
            key: Fingerprint of the run: with a whole reference of the same key and rows in `cache` there is no pass.
            processes: Those that share the pass.
        """
        sides = reference_sides(self.config, self.forget, self.retain, self.anchors)
        with reporter.track("reference", sum(len(side.rows) for side in sides.values())) as advance:
            self.reference = compute_reference(
                self.loaded, sides, folder=cache, key=key, processes=processes, progress=advance
            )

    @property
    def texts(self) -> dict[SideName, list[TokenizedExample]]:
        """The rows of each side, which a step points into."""
        return {"forget": self.forget, "retain": self.retain, "anchor": self.anchors, "instead": self.instead}

    def lengths(self, step: Step) -> list[int]:
        """Tokens of each row of a step, in the order of `rows`."""
        texts = self.texts
        return [len(texts[side][i]) for side in SIDES for i in getattr(step, side)]

    def micro_batch_tokens(self, step: Step) -> int:
        """Bound on the area of a micro-batch: what the device takes, and no more than a process's share of the step."""
        share = math.ceil(sum(self.lengths(step)) / self.accelerator.num_processes)
        return min(MICRO_BATCH_TOKENS[self.loaded.device.type], share)

    def size(self, step: Step) -> Size:
        """Extent of a step as it is laid out here."""
        multiple = self.loaded.row_multiple
        return size_of(self.lengths(step), self.micro_batch_tokens(step), packed=self.packed, multiple=multiple)

    def rows(self, step: Step) -> list[Row]:
        """The rows of a step with their reference values, side by side."""

        def values(name: str, index: int) -> Tensor | None:
            return self.reference[name][index].to(self.loaded.device) if name in self.reference else None

        texts = self.texts
        return [
            Row(texts[side][i], side, values(f"{side}_logps", i), values(f"{side}_states", i))
            for side in SIDES
            for i in getattr(step, side)
        ]

    def train_step(self, step: Step, index: int) -> dict[str, float]:
        """One optimizer step.

        Returns:
            The loss, its terms (means over the step's denominators, before the update; 0 for a side without rows), the
            gradient's norm before clipping and the learning rate.

        Raises:
            TrainingError: A term or the gradient is not finite; the weights are left as they were.
        """
        rows = self.rows(step)
        counts = count(rows, self.config)
        groups = micro_batches(self.lengths(step), self.micro_batch_tokens(step), packed=self.packed)
        own = groups[self.accelerator.process_index :: self.accelerator.num_processes]
        aim = self.selector.aim if self.selector else None
        terms = self._sum_over_processes(self._accumulate(rows, own, counts, aim))
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]).item()
        result = {"loss": weighted_sum(terms, self.config, aim), **terms, "grad_norm": norm}
        if not all(math.isfinite(value) for value in result.values()):
            shown = ", ".join(f"{name} {value:.4g}" for name, value in result.items())
            raise TrainingError(
                f"step {index + 1} is not finite ({shown}); rows {', '.join(row.text.id for row in rows)}: lower "
                "--learning-rate or look at these rows; checkpoints up to here are good"
            )
        if self.config.max_grad_norm and norm > self.config.max_grad_norm:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(self.config.max_grad_norm / norm)
        rate = learning_rate(self.config, index, self.num_steps) * (self.selector.course.rate if self.selector else 1.0)
        for settings in self.optimizer.param_groups:
            settings["lr"] = rate
        self.optimizer.step()
        if self.selector:
            self.selector.follow(index + 1)
        return {**result, "learning_rate": rate}

    def _accumulate(
        self, rows: list[Row], groups: list[list[int]], counts: Counts, aim: Aim | None
    ) -> dict[str, float]:
        """Gradients and terms of this process's micro-batches; halved, and all of it done again, until they fit.

        Every mean has the whole step's denominator, so smaller micro-batches give the same sums.

        Raises:
            TrainingError: A single row does not fit into the device's memory.
        """
        terms = dict.fromkeys(TERMS, 0.0)
        self.optimizer.zero_grad()
        try:
            for part in (part for group in groups for part in halved(group, self.rows_that_fit)):
                own = loss_terms(self.loaded, [rows[i] for i in part], counts, self.config, aim)
                weighted_sum(own, self.config, aim).backward()
                for name, value in own.items():
                    terms[name] += value.item()
        except torch.OutOfMemoryError as error:
            if self.loaded.lockstep is not None:  # the others wait in the middle of their passes
                raise TrainingError(
                    f"out of memory on {self.loaded.device}: with --shard-base a step cannot be repeated in smaller "
                    "parts; lower --tokens-per-step or --max-length, or give --gradient-checkpointing; --resume goes on"
                ) from error
            most = min(max(map(len, groups)), self.rows_that_fit)
            if most == 1:
                longest = max(len(rows[i].text) for group in groups for i in group)
                raise TrainingError(
                    f"out of memory on {self.loaded.device} with one row at a time (the longest has {longest:,} "
                    "tokens): lower --max-length or give --gradient-checkpointing"
                ) from error
            self.rows_that_fit = (most + 1) // 2
        else:
            self.loaded.join()
            return terms
        torch.cuda.empty_cache()  # outside of the handler, which holds the tensors of the failed pass
        return self._accumulate(rows, groups, counts, aim)

    def _sum_over_processes(self, terms: dict[str, float]) -> dict[str, float]:
        """Sum gradients and terms: an adapter's gradient is small, so one reduction carries all of it."""
        if self.accelerator.num_processes == 1:
            return terms
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        values = torch.tensor(list(terms.values()), device=self.loaded.device)
        flat = self.accelerator.reduce(torch.cat([values, *(grad.flatten() for grad in grads)]), "sum")
        total, *parts = flat.split([len(terms), *(grad.numel() for grad in grads)])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)
        return dict(zip(terms, total.tolist(), strict=True))

    def any_process(self, flag: bool) -> bool:
        """Whether `flag` is set in any process, so that all of them stop after the same step."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.loaded.device), "sum") > 0)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that a later step depends on: the adapter, Adam's moments, its running mean and the best so far.

        The plan and the anchors follow from the seed.
        """
        tensors = {}
        for index, parameter in enumerate(self.parameters):
            tensors[f"{index}.weight"] = parameter.detach().contiguous()
            for name, value in self.optimizer.state[parameter].items():
                tensors[f"{index}.{name}"] = value.contiguous()
        return tensors | (self.selector.state() if self.selector else {})

    @torch.no_grad()
    def load_state(self, tensors: dict[str, torch.Tensor], log: Sequence[Mapping[str, Any]] = ()) -> None:
        """Take over what `state` gave, and the looks in the lines of the log up to there."""
        if self.selector:
            self.selector.restore(log, tensors)
        for index, parameter in enumerate(self.parameters):
            own = {name.partition(".")[2]: v for name, v in tensors.items() if name.startswith(f"{index}.")}
            parameter.copy_(own.pop("weight"))
            self.optimizer.state[parameter] = {
                name: value if name == "step" else value.to(parameter.device) for name, value in own.items()
            }

    @property
    def over(self) -> bool:
        """Whether what was looked at says that the run should end."""
        return self.selector is not None and self.selector.course.over is not None

    def describe(self) -> str:
        """The size of the run in one line."""
        count_trainable = sum(parameter.numel() for parameter in self.parameters)
        total = sum(parameter.numel() for parameter in self.model.parameters())
        epoch = islice(self.plan.steps(), self.plan.steps_per_epoch)
        sizes = [self.size(step) for step in epoch]
        share = sum(size.tokens for size in sizes) / sum(size.area for size in sizes)
        return (
            f"steps: {self.num_steps:,} ({self.plan.steps_per_epoch} an epoch, {share:.1%} of the computed "
            f"area real), {self.plan.retain_per_forget:.2f} retain per forget; adapter: {count_trainable:,} of "
            f"{total:,} parameters; {self.config.dtype} on {self.config.device}, learning rate "
            f"{self.config.learning_rate:.2g}"
        )
