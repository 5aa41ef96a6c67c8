"""The method: low-rank negative preference optimization on the forget set, held in place on the retain set.

    loss = npo(forget) + retain_weight * nll(retain) + kl_weight * kl(retain)

One loop. A step is a set of rows with a fixed forget:retain mix, laid out in micro-batches; each micro-batch adds its
share to the gradient, every mean being over the whole step, so neither the layout nor the number of processes matters.
"""

import math
import time
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from expunge.config import UnlearnConfig
from expunge.data.batches import Plan, Size, Step, halved, micro_batches, size_of
from expunge.data.tokenize import TokenizedExample
from expunge.errors import ConfigError, TrainingError
from expunge.interrupt import StopRequest
from expunge.manifest import other_surroundings, read_manifest
from expunge.model.adapter import add_adapter, recompute_layers, trainable
from expunge.model.load import pick_device
from expunge.model.logps import final_states, lay_out, mean_losses
from expunge.model.memory import check_fits, saved_bytes
from expunge.model.reference import (
    MEMORY_BYTES,
    RowValues,
    Side,
    cache_folder,
    compute_reference,
    layout_bytes,
    reference_layout,
)
from expunge.prepare import Prepared, prepare
from expunge.processes import ALONE, Processes, together
from expunge.progress import Reporter
from expunge.run import Outcome, Run
from expunge.terms import Counts, Row, count, loss_terms, retain_span, weighted_sum

MICRO_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}
"""Area of one forward and backward pass, per device type."""
TERMS = ("npo", "retain_nll", "retain_kl")


def unlearn(config: UnlearnConfig, reporter: Reporter | None = None) -> Outcome:
    """Train an adapter that makes the model forget, and write the run directory.

    Args:
        config: The settings.
        reporter: Where progress goes; silent when None.

    Returns:
        Where things are, and the losses before and after.

    Raises:
        UserError: The input or a setting is at fault (nothing has been written then), or training cannot go on.
    """
    reporter = reporter or Reporter(quiet=True)
    config.validate()
    if config.dry_run:
        raise ConfigError("dry_run is for expunge.plan.forecast and the command line: nothing is to be trained")
    with together(pick_device(config.device)) as processes:
        return _unlearn(config, reporter, processes)


def _unlearn(config: UnlearnConfig, reporter: Reporter, processes: Processes) -> Outcome:
    run = Run.check(config)
    begun = time.perf_counter()
    prepared = prepare(config, reporter.say)
    for warning in prepared.warnings:
        reporter.warn(warning)
    if config.from_manifest:
        for other in other_surroundings(read_manifest(config.from_manifest, "--from-manifest"), prepared):
            reporter.warn(f"the last digits may differ from those of the run that is repeated: {other}")
    accelerator = Accelerator(
        cpu=prepared.loaded.device.type == "cpu",
        log_with=config.report_to.split(",") if config.report_to else None,
        project_dir=config.output,
    )
    config = prepared.config
    sets = {"forget": prepared.forget, "retain": prepared.retain, "holdout": prepared.holdout}
    trainer = Trainer(prepared, accelerator)
    trainer.check_memory()
    reporter.say(trainer.describe())
    run.open(config, prepared)
    texts = sum(map(len, sets.values()))
    with reporter.track("losses before", texts) as advance:  # a fresh adapter changes nothing
        before = mean_losses(prepared.loaded, sets, processes=processes, progress=advance)
    if config.report_to:
        accelerator.init_trackers("expunge", config={"recipe": config.recipe, "seed": config.seed})
    with cache_folder(run.path / "cache", processes) as cache:
        trainer.compute_reference(reporter, cache, run.fingerprint, processes)
        start = run.restore(trainer) if config.resume else 0
        processes.agree(start, "checkpoints")
        training_begun = time.perf_counter()
        train(trainer, run, reporter, start)
        training_seconds = time.perf_counter() - training_begun

    with reporter.track("losses after", texts) as advance:
        after = mean_losses(prepared.loaded, sets, processes=processes, progress=advance)
    accelerator.end_training()
    return run.finish(
        prepared,
        before=before,
        after=after,
        steps=trainer.num_steps,
        training_seconds=training_seconds,
        total_seconds=time.perf_counter() - begun,
    )


def train(trainer: "Trainer", run: Run, reporter: Reporter, start: int) -> None:
    """The loop: from step `start` to the last, logging and saving on the way.

    Raises:
        TrainingError: Training cannot go on.
        KeyboardInterrupt: Someone wants the process to stop; the step that was running is done and saved.
    """
    with reporter.track("unlearning", trainer.num_steps, start) as advance, StopRequest() as stop:
        for index, step in islice(enumerate(trainer.plan.steps()), start, trainer.num_steps):
            clock = time.perf_counter()
            terms = trainer.train_step(step, index)
            tokens = sum(trainer.lengths(step))
            rate = tokens / (time.perf_counter() - clock)
            run.log({"step": index + 1, "epoch": step.epoch + 1, **terms, "tokens": tokens})
            trainer.accelerator.log(terms, step=index + 1)
            shown = "  ".join(f"{name} {terms[name]:.3f}" for name in TERMS)
            advance(note=f"epoch {step.epoch + 1}  {shown}  {rate:,.0f} tok/s")
            every = trainer.config.save_every
            stopping = trainer.any_process(stop.requested)
            if stopping or (every and (index + 1) % every == 0):
                run.save_checkpoint(trainer, index + 1)
            if stopping:
                raise KeyboardInterrupt(f"step {index + 1} of {trainer.num_steps} is saved; --resume goes on from it")


class Trainer:
    """What a run holds between steps: policy, reference values, plan, optimizer.

    Args:
        prepared: Model and tokenized texts; the adapter is put into the model here.
        accelerator: The processes that share the work.
    """

    def __init__(self, prepared: Prepared, accelerator: Accelerator) -> None:
        self.config, self.loaded, self.accelerator = prepared.config, prepared.loaded, accelerator
        self.forget, self.retain = prepared.forget, prepared.retain
        config = self.config
        self.plan = make_plan(prepared)
        self.num_steps = min(self.plan.num_steps, config.max_steps or self.plan.num_steps)
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
        self.packed = self.loaded.packs([len(row) for row in [*self.forget, *self.retain]])
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
        longest = max([*self.forget, *self.retain], key=len)
        batch = lay_out(self.loaded, [longest.input_ids])
        kept = saved_bytes(self.model, lambda: final_states(self.loaded, batch))
        epoch = islice(self.plan.steps(), self.plan.steps_per_epoch)
        most = max(self.size(step).largest for step in epoch)
        layout = reference_layout(self.loaded, reference_sides(self.config, self.forget, self.retain))
        needed = kept * most // batch.input_ids.numel() + min(layout_bytes(layout), MEMORY_BYTES)
        check_fits(
            needed,
            self.loaded.device,
            f"training with {most:,} tokens at once",
            "give --gradient-checkpointing, lower --tokens-per-step or --max-length, or take a larger machine",
        )

    def compute_reference(
        self, reporter: Reporter, cache: Path | None = None, key: str = "", processes: Processes = ALONE
    ) -> None:
        """Look once at all rows with the adapter off; must come before the first step.

        Args:
            reporter: Told about the pass.
            cache: Folder for a reference that is too large for the memory; in memory whatever its size when None.
            key: Fingerprint of the run: with a whole reference of the same key in `cache` there is no pass.
            processes: Those that share the pass.
        """
        sides = reference_sides(self.config, self.forget, self.retain)
        with reporter.track("reference", sum(len(side.rows) for side in sides.values())) as advance:
            self.reference = compute_reference(
                self.loaded, sides, folder=cache, key=key, processes=processes, progress=advance
            )

    def lengths(self, step: Step) -> list[int]:
        """Tokens of each row of a step, forget rows first."""
        return [len(self.forget[i]) for i in step.forget] + [len(self.retain[i]) for i in step.retain]

    def micro_batch_tokens(self, step: Step) -> int:
        """Bound on the area of a micro-batch: what the device takes, and no more than a process's share of the step."""
        share = math.ceil(sum(self.lengths(step)) / self.accelerator.num_processes)
        return min(MICRO_BATCH_TOKENS[self.loaded.device.type], share)

    def size(self, step: Step) -> Size:
        """Extent of a step as it is laid out here."""
        multiple = self.loaded.row_multiple
        return size_of(self.lengths(step), self.micro_batch_tokens(step), packed=self.packed, multiple=multiple)

    def rows(self, step: Step) -> list[Row]:
        """The rows of a step with their reference values, forget rows first."""

        def values(name: str, index: int) -> Tensor | None:
            return self.reference[name][index].to(self.loaded.device) if name in self.reference else None

        forget = [Row(self.forget[i], True, values("forget_logps", i)) for i in step.forget]
        return forget + [
            Row(self.retain[i], False, values("retain_logps", i), values("retain_states", i)) for i in step.retain
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
        terms = self._sum_over_processes(self._accumulate(rows, own, counts))
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]).item()
        result = {"loss": weighted_sum(terms, self.config), **terms, "grad_norm": norm}
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
        rate = learning_rate(self.config, index, self.num_steps)
        for settings in self.optimizer.param_groups:
            settings["lr"] = rate
        self.optimizer.step()
        return {**result, "learning_rate": rate}

    def _accumulate(self, rows: list[Row], groups: list[list[int]], counts: Counts) -> dict[str, float]:
        """Gradients and terms of this process's micro-batches; halved, and all of it done again, until they fit.

        Every mean has the whole step's denominator, so smaller micro-batches give the same sums.

        Raises:
            TrainingError: A single row does not fit into the device's memory.
        """
        terms = dict.fromkeys(TERMS, 0.0)
        self.optimizer.zero_grad()
        try:
            for part in (part for group in groups for part in halved(group, self.rows_that_fit)):
                own = loss_terms(self.loaded, [rows[i] for i in part], counts, self.config)
                weighted_sum(own, self.config).backward()
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
        return self._accumulate(rows, groups, counts)

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
        """Everything that a later step depends on: the adapter and Adam's moments (the plan follows from the seed)."""
        tensors = {}
        for index, parameter in enumerate(self.parameters):
            tensors[f"{index}.weight"] = parameter.detach().contiguous()
            for name, value in self.optimizer.state[parameter].items():
                tensors[f"{index}.{name}"] = value.contiguous()
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what `state` gave."""
        for index, parameter in enumerate(self.parameters):
            own = {name.partition(".")[2]: v for name, v in tensors.items() if name.startswith(f"{index}.")}
            parameter.copy_(own.pop("weight"))
            self.optimizer.state[parameter] = {
                name: value if name == "step" else value.to(parameter.device) for name, value in own.items()
            }

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


def make_plan(prepared: Prepared) -> Plan:
    """The steps of a run."""
    config = prepared.config
    return Plan(
        [len(row) for row in prepared.forget],
        [len(row) for row in prepared.retain],
        epochs=config.epochs,
        tokens_per_step=config.tokens_per_step,
        rows_per_step=config.rows_per_step,
        retain_per_forget=config.retain_per_forget,
        mix=config.mix,
        seed=config.seed,
    )


def reference_sides(
    config: UnlearnConfig, forget: list[TokenizedExample], retain: list[TokenizedExample]
) -> dict[str, Side]:
    """What the terms need of the reference: nothing of the retain rows when there is no KL."""
    sides = {"forget_logps": Side(forget, config.forget_span, "logps")}
    if retain and config.uses_kl_states:
        sides["retain_states"] = Side(retain, retain_span(config), "states")
    elif retain and config.kl_weight > 0:
        sides["retain_logps"] = Side(retain, retain_span(config), "logps")
    return sides


def learning_rate(config: UnlearnConfig, index: int, num_steps: int) -> float:
    """The learning rate of step `index` (from 0): a linear rise over `warmup`, then the schedule."""
    peak = config.learning_rate or 0.0
    warm = round(config.warmup * num_steps)
    if index < warm:
        return peak * (index + 1) / warm
    if config.schedule == "constant":
        return peak
    left = 1 - (index - warm) / max(1, num_steps - warm)
    return peak * (left if config.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2)
