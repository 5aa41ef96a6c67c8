"""The method: set-up, resume, loop, save. Low-rank unlearning, held in place on the rest.

    loss = forget_weight * forget_loss(forget) + retain_weight * nll(retain) + kl_weight * kl(retain)
           + replay_weight * kl(replay) + instead_weight * nll(instead)

The forget loss is one of `expunge.losses`; replay texts are written by the untouched model; `instead` is what it
should say in place of the forget set. Evaluation steps on unseen texts say when to end and which state to keep; they
change no loss.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from expunge.config import UnlearnConfig
from expunge.data.holdout import keyed_hashes
from expunge.errors import ConfigError, RunError
from expunge.model.adapter import set_scale
from expunge.model.device import pick_device
from expunge.model.logps import mean_losses
from expunge.model.saved import VERIFIED, save_adapter
from expunge.runs.hub import check_hub
from expunge.runs.manifest import RunFacts, other_surroundings
from expunge.runs.record import ALL_DONE, read_manifest
from expunge.runs.run import Outcome, Run, RunResult
from expunge.train.before import ask_untouched, check_memory
from expunge.train.callbacks import Callback, Callbacks, TrainState, check_callbacks, never_called
from expunge.train.doubts import doubts, known_unseen
from expunge.train.early_stopping import EarlyStopping
from expunge.train.scale import MOST_SCALES, Calibration, choose_scale, judge, record, unchosen
from expunge.train.setup import Prepared, prepare
from expunge.train.speed import beside_graphs, speed_up
from expunge.train.trainer import STEPS_PER_READ, TakenStep, Trainer
from expunge.train.validation import Validator
from expunge.utils.distributed import Processes, SharedStop, together
from expunge.utils.interrupt import StopRequest
from expunge.utils.progress import Reporter
from expunge.utils.ranks import is_writer
from expunge.utils.text import counted
from expunge.utils.trackers import Trackers

PARTS = 8
"""Parts of a run without evaluation steps between which its model's answers are looked at."""
LEARNED = 1.0
"""Mean NLL of what should be said instead, nats a token, above which something else is said."""
Advise = Callable[[], list[str]]
"""Looks at what the model says now, if that does not take too long, and gives lines for the user."""


@dataclass(frozen=True)
class Evaluation:
    """The evaluation steps of a run.

    Attributes:
        validator: Measures the model.
        stopping: Says when the run ends, and keeps its best state.
        every: Steps from one to the next.
    """

    validator: Validator
    stopping: EarlyStopping
    every: int

    @classmethod
    def of(cls, prepared: Prepared, trainer: Trainer) -> "Evaluation | None":
        """That of a run before its first step, whose untouched model is measured; None where it is to have none."""
        config, rows = prepared.config, prepared.validation
        if rows is None:
            return None
        validator = Validator(prepared.loaded, rows, trainer.processes)
        stopping = EarlyStopping(config.criteria, validator.untouched, config.patience)
        return cls(validator, stopping, trainer.rows.evaluation_every(rows))

    def step(self, done: int, trainer: Trainer) -> tuple[dict[str, Any], str]:
        """Measure the average after so many steps; gives what the log and what the user should see."""
        with trainer.average.applied():
            metrics = beside_graphs(trainer, lambda: self.validator.at(1.0))
        seen = f"AUC {metrics.auc:.2f}  forget {metrics.forget_nll:.2f}  unseen {metrics.unseen_nll:.2f} nats"
        return self.stopping.add(done, metrics, trainer.average.value), seen


def unlearn(
    config: UnlearnConfig,
    reporter: Reporter | None = None,
    callbacks: Sequence[Callback] = (),
    advisor: Callable[[Prepared], Advise] | None = None,
) -> Outcome:
    """Train an adapter that makes the model forget, and write the run directory.

    Args:
        config: The settings.
        reporter: Where progress goes; warnings alone when None.
        callbacks: Called after steps and evaluation steps; they may ask the run to stop.
        advisor: Makes what looks at the model's answers after evaluation steps, or now and then without them.

    Returns:
        Where things are, and the losses before and after.

    Raises:
        UserError: The input or a setting is at fault (nothing has been written then), or training cannot go on.
    """
    config.validate()
    check_callbacks(callbacks)
    if config.dry_run:
        raise ConfigError("dry_run is for the command line: in Python, expunge.forecast says what a run would take")
    with together(lambda: pick_device(config.device)) as processes:
        if config.push_to_hub and is_writer():
            check_hub(config.push_to_hub, public=config.public)
        with Run.check(config) as run:
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
    for events in never_called(callbacks):
        reporter.warn(events)
    prepared = prepare(config, reporter)
    config, loaded = prepared.config, prepared.loaded
    with reporter.working("putting the adapter in, and looking what fits into the memory"):
        trainer = Trainer(prepared, processes)
        check_memory(trainer)
    reporter.say(trainer.describe())
    for note in loaded.told():
        reporter.say(note)
    with reporter.working("hashing the model"):
        run.open(config, facts := run_facts(prepared, trainer))
    _warn(config, run, prepared, facts, reporter)
    with reporter.track("losses before", sum(map(len, prepared.told.values()))) as advance:
        before = mean_losses(loaded, prepared.told, processes=processes, progress=advance)  # a fresh adapter is nothing
    if not config.finish:  # which takes no step
        if config.resume:
            reporter.say("resume: replay texts and reference are made again, the same as before, from the seed")
        ask_untouched(trainer, reporter)
    with reporter.working("evaluating the untouched model"):
        evaluation = Evaluation.of(prepared, trainer)
    found = doubts(evaluation.validator, config.criteria) if evaluation else []
    for doubt in found:
        reporter.warn(doubt)
    start = resume(run, trainer, evaluation, reporter) if config.resume else 0
    processes.agree(start, "checkpoints")
    if config.resume:
        reporter.say(f"resume: {start} of {trainer.rows.num_steps} steps are done")
    if config.finish and not start:
        raise RunError("--finish: no checkpoint of this run is whole: leave it out to go on")
    steps, training_seconds = start, 0.0
    if not config.finish:
        with reporter.working("a few answers of the untouched model"):
            advise = advisor(prepared) if advisor else None
        with reporter.working("looking for a faster way to take the steps"):
            line = speed_up(trainer)
        if line:
            reporter.say(line)
        training_begun = time.perf_counter()
        epoch = -(-start // trainer.rows.plan.steps_per_epoch)
        state = TrainState(start, trainer.rows.num_steps, epoch, is_world_process_zero=processes.index == 0)
        steps = train(trainer, evaluation, run, reporter, Callbacks(callbacks, config, state), advise)
        training_seconds = time.perf_counter() - training_begun
        loaded.captured = None
    reason = _why_ended(trainer, evaluation, steps)
    reporter.say(f"ended after {counted(steps, 'step')}: {reason}")
    selection = settle(trainer, evaluation, prepared, reason, reporter)
    with reporter.track("losses after", sum(map(len, prepared.told.values()))) as advance:
        after = mean_losses(loaded, prepared.told, processes=processes, progress=advance)
    if after.get("instead", 0.0) > LEARNED and not prepared.pairs:
        reporter.warn(
            f"--instead: these answers are not learned yet (more than {LEARNED:g} nat a token), so others are given in "
            "their place: raise --instead-weight, or give fewer different ones"
        )
    result = RunResult(
        losses={name: {"before": before[name], "after": after[name]} for name in after},
        texts={name: len(prepared.told[name]) for name in after},
        steps=steps,
        timed_steps=steps - start,
        ended=reason,
        training_seconds=training_seconds,
        total_seconds=time.perf_counter() - begun,
        selection=selection,
        contexts=contexts_taken(trainer),
        warnings=found,
        unseen_doubts=[*prepared.unseen_doubts, *(known_unseen(evaluation.validator) if evaluation else [])],
    )
    rows = [row.input_ids for row in prepared.forget[:VERIFIED]]
    with reporter.working("saving the adapter, and reading it back"):
        adapter = run.output / "adapter"
        outcome = run.finish(result, lambda folder: save_adapter(loaded, folder, rows, final=adapter))
    for note in loaded.told():
        reporter.say(note)
    return outcome


def contexts_taken(trainer: Trainer) -> dict[str, float] | None:
    """What the manifest tells of the texts before forget texts; a run that only ends has not looked."""
    if trainer.rows.contexts is None or trainer.config.finish:
        return None
    return {"tokens": trainer.rows.contexts.tokens, "ratio": trainer.rows.sides["forget"].ratio}


def train(
    trainer: Trainer,
    evaluation: Evaluation | None,
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
    config, num_steps, processes = trainer.config, trainer.rows.num_steps, trainer.processes
    watched = processes.any(bool(callbacks.given))  # perhaps by one of them alone
    most = 1 if watched else STEPS_PER_READ[trainer.loaded.device.type]
    report_to = config.report_to if is_writer() else None
    trackers = Trackers(report_to, str(run.path), {"recipe": config.recipe, "seed": config.seed})
    done = start = callbacks.state.global_step
    seen, spent = "", 0.0
    taken: list[TakenStep] = []
    shared = SharedStop(processes)
    callbacks.call("on_train_begin")
    with trackers, reporter.track("unlearning", num_steps, start) as advance, StopRequest() as stop:
        for step in islice(trainer.rows.plan.steps(), start, num_steps):
            if evaluation and evaluation.stopping.over:
                break
            clock = time.perf_counter()
            taken.append(trainer.take_step(step))
            done, last = step.number + 1, step.number + 1 == num_steps
            saves = config.save_every and done % config.save_every == 0
            evaluates = evaluation and (done % evaluation.every == 0 or last)
            waits = bool(saves or evaluates or last or len(taken) == most)
            stopped = shared.after_step(stop.requested, clock, waits=waits)
            due = waits or stopped
            read = trainer.read(taken) if due else []
            spent += time.perf_counter() - clock
            if not due:
                continue
            lines: list[dict[str, Any]] = [
                {"step": entry.step.number + 1, "epoch": entry.step.epoch + 1, **values, "tokens": entry.tokens}
                for entry, values in zip(taken, read, strict=True)
            ]
            if evaluation and evaluates:
                lines[-1]["validation"], seen = evaluation.step(done, trainer)
            asked = [_tell(line, run, trackers, callbacks) for line in lines][-1]
            parts = [PARTS * at // num_steps for at in (done - len(lines), done)]
            looks = evaluates if evaluation else parts[0] < parts[1]
            if advise and looks and not (last or stopped):
                with trainer.average.applied():
                    for told in beside_graphs(trainer, advise):
                        reporter.warn(f"step {done}: {told}")
            coarse = run.told(lines[-1])
            shown = "  ".join(f"{term.name} {coarse[term.name]:.3f}" for term in trainer.terms)
            rate = sum(line["tokens"] for line in lines) / spent
            advance(len(lines), note=f"epoch {step.epoch + 1}  {shown}  {seen}  {rate:,.0f} tok/s")
            taken, spent = [], 0.0
            for note in trainer.loaded.told():
                reporter.say(note)
            over = bool(evaluation and evaluation.stopping.over) or (watched and processes.any(asked))
            if saves or stopped or last or over:  # what follows the last step may fail or be interrupted, too
                best = evaluation.stopping.tensors() if evaluation else {}
                run.save_checkpoint(trainer.state() | best, done)
            if stopped:
                raise KeyboardInterrupt(
                    f"step {done} of {num_steps} is saved; --resume goes on from it, --resume --finish ends there"
                )
            if over:
                break
    callbacks.call("on_train_end")
    return done


def _tell(line: dict[str, Any], run: Run, trackers: Trackers, callbacks: Callbacks) -> bool:
    """Hand a line of the log to whoever wants it; whether a callback asks the run to end."""
    told = run.told(line)
    run.log(told)
    apart = ("step", "epoch", "tokens", "validation")
    trackers.log({name: value for name, value in told.items() if name not in apart}, step=line["step"])
    return callbacks.step(line)


def resume(run: Run, trainer: Trainer, evaluation: Evaluation | None, reporter: Reporter) -> int:
    """Go back to the newest whole checkpoint; gives its step, 0 where there is none."""
    step, tensors, lines = run.restore(reporter.warn)
    if step:
        trainer.load_state(tensors)
        if evaluation:
            device = trainer.loaded.device
            evaluation.stopping.restore(lines, {name: value.to(device) for name, value in tensors.items()})
    return step


def settle(
    trainer: Trainer, evaluation: Evaluation | None, prepared: Prepared, reason: str, reporter: Reporter
) -> dict[str, Any] | None:
    """Keep the best state that was evaluated, else the last average; where it misses a criterion, at the scale that
    comes closest to them.

    Returns:
        What calibration.json should hold: where nothing was evaluated, what stands for the texts that gave targets;
        None where no unseen text steered the run.
    """
    best, config = evaluation.stopping.best if evaluation else None, trainer.config
    trained: dict[str, Any] | None = None
    if prepared.selection is not None:
        trained = unchosen(trainer.model, keyed_hashes(prepared.selection.hashes))
    if evaluation is None or best is None or trained is None:
        trainer.weights.copy_(trainer.average.value)
        return trained
    stopping = evaluation.stopping
    assert stopping.state is not None
    trainer.weights.copy_(stopping.state)
    reached, at_one = judge(best.metrics, stopping.untouched, config.criteria)
    if reached:
        chosen, beside = Calibration(1.0, reached, at_one, [stopping.untouched, best.metrics]), ""
    else:
        with reporter.track("adapter scales", MOST_SCALES - 1) as advance:
            chosen = choose_scale(evaluation.validator, config.criteria, known=[best.metrics], progress=advance)
        beside = "" if chosen.scale == 1 else f" (at scale 1: {at_one})"
    set_scale(trainer.model, chosen.scale)
    reporter.say(f"state of step {best.step} at scale {chosen.scale:g}: {chosen.verdict}{beside}")
    content = record(chosen, config.criteria, trained, evaluation.validator.rows)
    return {**content, "best_step": best.step, "stopped": reason}


def _why_ended(trainer: Trainer, evaluation: Evaluation | None, steps: int) -> str:
    """Why a run takes no more steps."""
    if evaluation and evaluation.stopping.over:
        return evaluation.stopping.over
    if steps == trainer.rows.num_steps:
        return ALL_DONE
    return "--finish" if trainer.config.finish else "a callback asked for it"


def run_facts(prepared: Prepared, trainer: Trainer) -> RunFacts:
    """What a run is, beside its settings."""
    selected = prepared.selection
    steering = {"selection": [*selected.members, *selected.unseen]} if selected else {}
    return RunFacts(
        rows=prepared.sets | steering,
        texts=prepared.texts,
        prompt_format=str(prepared.prompt_format.chosen),
        prompt_format_losses=prepared.prompt_format.losses,
        terms=[asdict(term) for term in trainer.terms],
        device=prepared.loaded.device,
        model_files=prepared.model_files,
        base_commit=getattr(prepared.loaded.base.config, "_commit_hash", None),
        warnings=prepared.warnings,
    )


def _warn(config: UnlearnConfig, run: Run, prepared: Prepared, facts: RunFacts, reporter: Reporter) -> None:
    for warning in prepared.warnings:
        reporter.warn(warning)
    resumes = config.resume and not config.finish
    earlier = read_manifest(config.from_manifest, "--from-manifest") if config.from_manifest else None
    for other in other_surroundings(earlier, facts.device) if earlier else ():
        reporter.warn(f"the last digits may differ from those of the run that is repeated: {other}")
    for other in other_surroundings(run.earlier(), facts.device) if resumes and is_writer() else ():
        reporter.warn(f"the rest of the run, replay texts among it, may differ from what it would have been: {other}")
