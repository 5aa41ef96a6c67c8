"""The method: set-up, resume, loop, save. Low-rank unlearning, held in place on the rest.

    loss = forget_weight * forget_loss(forget) + retain_weight * nll(retain) + kl_weight * kl(retain)
           + replay_weight * kl(replay) + instead_weight * nll(instead)

The forget loss is one of `expunge.losses`; replay texts are written by the untouched model; `instead` is what it
should say in place of the forget set. Evaluation steps on unseen texts say when to end and which state to keep; they
change no loss.
"""

import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from expunge.config import UnlearnConfig
from expunge.data.holdout import keyed_hashes
from expunge.errors import ConfigError
from expunge.losses.terms import described
from expunge.model.adapter import VERIFIED, save_adapter, set_scale
from expunge.model.device import pick_device
from expunge.model.logps import mean_losses
from expunge.model.reference import cache_folder
from expunge.runs.hub import check_hub
from expunge.runs.manifest import RunFacts, other_surroundings
from expunge.runs.record import read_manifest
from expunge.runs.run import Outcome, Run, RunResult, is_writer
from expunge.train.averaging import assign
from expunge.train.callbacks import Callback, Callbacks, TrainState
from expunge.train.early_stopping import EarlyStopping
from expunge.train.scale import choose_scale, judge, most_scales, record
from expunge.train.schedule import evaluation_spacing
from expunge.train.setup import Prepared, prepare
from expunge.train.speed import speed_up
from expunge.train.step_log import STEPS_PER_READ, TakenStep
from expunge.train.trainer import Trainer
from expunge.train.validation import ValidationRows, Validator
from expunge.utils.distributed import Processes, together
from expunge.utils.interrupt import StopRequest
from expunge.utils.progress import Reporter
from expunge.utils.trackers import Trackers

LOOKS = 4
"""Parts of a run between which its model's answers are looked at."""
Advise = Callable[[], list[str]]
"""Looks at what the model says now, and gives lines for the user."""


def unlearn(
    config: UnlearnConfig,
    reporter: Reporter | None = None,
    callbacks: Sequence[Callback] = (),
    advisor: Callable[[Prepared], Advise] | None = None,
) -> Outcome:
    """Train an adapter that makes the model forget, and write the run directory.

    Args:
        config: The settings.
        reporter: Where progress goes; silent when None.
        callbacks: Called after steps and evaluation steps; they may ask the run to stop.
        advisor: Makes what looks at the model's answers between the quarters of a run of one process.

    Returns:
        Where things are, and the losses before and after.

    Raises:
        UserError: The input or a setting is at fault (nothing has been written then), or training cannot go on.
    """
    config.validate()
    if config.dry_run:
        raise ConfigError("dry_run is for the command line: in Python, expunge.forecast says what a run would take")
    if config.push_to_hub and is_writer():
        check_hub(config.push_to_hub, public=config.public)
    with together(pick_device(config.device)) as processes, Run.check(config) as run:
        return _unlearn(config, run, reporter or Reporter(quiet=True), processes, callbacks, advisor)


def _unlearn(
    config: UnlearnConfig,
    run: Run,
    reporter: Reporter,
    processes: Processes,
    callbacks: Sequence[Callback],
    advisor: Callable[[Prepared], Advise] | None,
) -> Outcome:
    begun = time.perf_counter()
    prepared = prepare(config, reporter)
    config, loaded = prepared.config, prepared.loaded
    trainer = Trainer(prepared, processes)
    trainer.check_memory()
    reporter.say(trainer.describe())
    for note in loaded.told():
        reporter.say(note)
    run.open(config, facts := _facts(prepared, trainer))
    _warn(config, prepared, facts, reporter)
    with reporter.track("losses before", sum(map(len, prepared.told.values()))) as advance:
        before = mean_losses(loaded, prepared.told, processes=processes, progress=advance)  # a fresh adapter is nothing
    with cache_folder(run.cache, processes) as cache:
        trainer.write_replay(reporter)
        trainer.compute_reference(reporter, cache, run.fingerprint)
        validator, stopping = _evaluation(prepared, processes)
        start = resume(run, trainer, stopping) if config.resume else 0
        processes.agree(start, "checkpoints")
        if config.resume:
            reporter.say(f"resume: {start} of {trainer.num_steps} steps are done")
        with reporter.working("a few answers of the untouched model"):
            advise = advisor(prepared) if advisor and processes.count == 1 else None
        with reporter.working("looking for a faster way to take the steps"):
            line = speed_up(trainer)
        if line:
            reporter.say(line)
        training_begun = time.perf_counter()
        state = TrainState(start, trainer.num_steps, is_world_process_zero=processes.index == 0)
        steps = train(trainer, validator, stopping, run, reporter, Callbacks(callbacks, config, state), advise)
        training_seconds = time.perf_counter() - training_begun
        loaded.captured = None
    selection = settle(trainer, validator, stopping, prepared, steps, reporter)
    with reporter.track("losses after", sum(map(len, prepared.told.values()))) as advance:
        after = mean_losses(loaded, prepared.told, processes=processes, progress=advance)
    result = RunResult(
        losses={name: {"before": before[name], "after": after[name]} for name in after},
        texts={name: len(prepared.told[name]) for name in after},
        steps=steps,
        training_seconds=training_seconds,
        total_seconds=time.perf_counter() - begun,
        selection=selection,
    )
    rows = [row.input_ids for row in prepared.forget[:VERIFIED]]
    with reporter.working("saving the adapter, and reading it back"):
        return run.finish(result, lambda folder: save_adapter(loaded, folder, rows))


def train(
    trainer: Trainer,
    validator: Validator | None,
    stopping: EarlyStopping | None,
    run: Run,
    reporter: Reporter,
    callbacks: Callbacks,
    advise: Advise | None = None,
) -> int:
    """The loop: to the last step, or to where it should end, evaluating, logging and saving on the way.

    The log of a step is read from the device together with that of the next ones, before they are evaluated or saved
    at the latest: a checkpoint never knows of a step that the log lacks, and what is lost is taken again on `--resume`.

    Returns:
        The steps that are done.

    Raises:
        TrainingError: Training cannot go on.
        KeyboardInterrupt: Someone wants the process to stop; the step that was running is done and saved.
    """
    config, every = trainer.config, evaluation_every(trainer, validator.rows) if validator else 0
    most = 1 if callbacks.given else STEPS_PER_READ[trainer.loaded.device.type]
    trackers = Trackers(config.report_to, str(run.path), {"recipe": config.recipe, "seed": config.seed})
    weights = {term.name: term.weight for term in trainer.terms}
    done = start = callbacks.state.global_step
    seen, spent = "", 0.0
    taken: list[TakenStep] = []
    callbacks.call("on_train_begin")
    with reporter.track("unlearning", trainer.num_steps, start) as advance, StopRequest() as stop:
        for index, step in islice(enumerate(trainer.plan.steps()), start, trainer.num_steps):
            if stopping and stopping.over:
                break
            clock = time.perf_counter()
            taken.append(trainer.take_step(step, index))
            done, last = index + 1, index + 1 == trainer.num_steps
            stopped = trainer.processes.any(stop.requested)
            saves = stopped or (config.save_every and done % config.save_every == 0)
            evaluates = validator and (done % every == 0 or last)
            due = saves or evaluates or last or len(taken) == most
            read = trainer.read(taken) if due else []
            spent += time.perf_counter() - clock
            if not due:
                continue
            lines: list[dict[str, Any]] = [
                {"step": own.index + 1, "epoch": own.step.epoch + 1, **values, "tokens": sum(trainer.lengths(own.step))}
                for own, values in zip(taken, read, strict=True)
            ]
            if validator and stopping and evaluates:
                with trainer.average.applied():
                    metrics = validator.at(1.0)
                lines[-1] |= {"weights": weights, "validation": stopping.add(done, metrics, trainer.average.values)}
                seen = f"AUC {metrics.auc:.2f}  forget {metrics.forget_nll:.2f}  unseen {metrics.unseen_nll:.2f} nats"
            asked = False
            for line, values in zip(lines, read, strict=True):
                told = run.told(line)
                run.log(told)
                trackers.log({name: told[name] for name in values}, step=line["step"])
                asked = callbacks.step(line)
            quarters = [LOOKS * step // trainer.num_steps for step in (done - len(lines), done)]
            if advise and quarters[0] < quarters[1] and not (last or stopped):
                with trainer.average.applied():
                    for told_now in advise():
                        reporter.warn(f"step {done}: {told_now}")
            ended = bool(callbacks.given) and trainer.processes.any(asked)
            shown = "  ".join(f"{name} {read[-1][name]:.3f}" for name in weights)
            rate = sum(line["tokens"] for line in lines) / spent
            advance(len(lines), note=f"epoch {step.epoch + 1}  {shown}  {seen}  {rate:,.0f} tok/s")
            taken, spent = [], 0.0
            if saves:
                run.save_checkpoint(trainer.state() | (stopping.tensors() if stopping else {}), done)
            if stopped:
                raise KeyboardInterrupt(f"step {done} of {trainer.num_steps} is saved; --resume goes on from it")
            if ended:
                break
    callbacks.call("on_train_end")
    trackers.close()
    return done


def resume(run: Run, trainer: Trainer, stopping: EarlyStopping | None) -> int:
    """Go back to the newest whole checkpoint; gives its step, 0 where there is none."""
    step, tensors, lines = run.restore()
    if step:
        trainer.load_state(tensors)
        if stopping:
            device = trainer.loaded.device
            stopping.restore(lines, {name: value.to(device) for name, value in tensors.items()})
    return step


def settle(
    trainer: Trainer,
    validator: Validator | None,
    stopping: EarlyStopping | None,
    prepared: Prepared,
    steps: int,
    reporter: Reporter,
) -> dict[str, Any] | None:
    """Keep the best state that was evaluated, at the scale that comes closest to the criteria; else the last average.

    Returns:
        What calibration.json should hold; None where nothing was evaluated.
    """
    best = stopping.best if stopping else None
    if validator is None or stopping is None or best is None or prepared.selection is None:
        assign(trainer.weights, trainer.average.values)
        return None
    config = trainer.config
    reason = stopping.over or ("all steps are done" if steps == trainer.num_steps else "a callback asked for it")
    reporter.say(f"ended after {steps} steps: {reason}")
    assign(trainer.weights, stopping.state)
    with reporter.track("adapter scales", most_scales() - 1) as advance:
        chosen = choose_scale(validator, config.criteria, known=[best.metrics], progress=advance)
    alpha = config.lora_alpha or config.lora_rank
    set_scale(trainer.model, chosen.scale)
    _, at_one = judge(best.metrics, stopping.untouched, config.criteria)
    reporter.say(f"state of step {best.step} at scale {chosen.scale:g}: {chosen.verdict} (at scale 1: {at_one})")
    content = record(
        chosen,
        config.criteria,
        trained_alpha=alpha,
        rows=validator.rows,
        hashes=keyed_hashes(prepared.selection.hashes),
    )
    pattern = getattr(trainer.model.peft_config["default"], "alpha_pattern", None)
    return {**content, "trained_alpha_pattern": pattern or {}, "best_step": best.step, "stopped": reason}


def evaluation_every(trainer: Trainer, rows: ValidationRows) -> int:
    """Steps between two evaluation steps on these rows."""
    if trainer.config.eval_every:
        return trainer.config.eval_every
    steps = [sum(trainer.lengths(step)) for step in islice(trainer.plan.steps(), trainer.plan.steps_per_epoch)]
    return evaluation_spacing(trainer.plan, sum(map(len, rows.all)), sum(steps) / len(steps))


def _evaluation(prepared: Prepared, processes: Processes) -> tuple[Validator | None, EarlyStopping | None]:
    """What evaluates a run and says when it ends; nothing where it is not to be evaluated."""
    config, rows = prepared.config, prepared.validation
    if rows is None:
        return None, None
    validator = Validator(prepared.loaded, rows, processes)
    return validator, EarlyStopping(config.criteria, validator.untouched, config.patience)


def _facts(prepared: Prepared, trainer: Trainer) -> RunFacts:
    selected = prepared.selection
    steering = {"selection": [*selected.members, *selected.nonmembers]} if selected else {}
    return RunFacts(
        rows=prepared.sets | steering,
        texts=prepared.texts,
        prompt_format=str(prepared.prompt_format.chosen),
        prompt_format_losses=prepared.prompt_format.losses,
        terms=described(trainer.terms),
        device=prepared.loaded.device,
        model_files=prepared.model_files,
        base_commit=getattr(prepared.loaded.base.config, "_commit_hash", None),
        warnings=prepared.warnings,
    )


def _warn(config: UnlearnConfig, prepared: Prepared, facts: RunFacts, reporter: Reporter) -> None:
    for warning in prepared.warnings:
        reporter.warn(warning)
    if config.from_manifest:
        for other in other_surroundings(read_manifest(config.from_manifest, "--from-manifest"), facts.device):
            reporter.warn(f"the last digits may differ from those of the run that is repeated: {other}")
