"""The method: low-rank negative preference optimization on the forget set, held in place on the rest.

    loss = forget_weight * npo(forget) + rest_weight * kl(others) + retain_weight * nll(retain) + kl_weight * kl(retain)
           + anchor_weight * kl(anchors) + instead_weight * nll(instead)

Others are all tokens but the forgotten one, in its place; anchors are texts that the untouched model wrote itself;
`instead` is what it should say in place of the forget set. Looks at selection texts say when to stop; the best state is
taken, and the same texts set its strength. One loop.
"""

import time
from itertools import islice
from typing import Any

from accelerate import Accelerator

from expunge.config import SETS, UnlearnConfig
from expunge.data.holdout import marks
from expunge.errors import ConfigError
from expunge.model.adapter import save_adapter, set_alpha
from expunge.model.load import pick_device
from expunge.model.logps import mean_losses
from expunge.model.reference import cache_folder
from expunge.runs.manifest import RunFacts, other_surroundings, read_manifest
from expunge.runs.run import Outcome, Run, RunResult
from expunge.train.early_stopping import take
from expunge.train.scale import Calibration, choose, misfit_at, number_of_looks, record
from expunge.train.setup import Prepared, prepare
from expunge.train.terms import TERMS
from expunge.train.trainer import Trainer
from expunge.utils.distributed import Processes, together
from expunge.utils.interrupt import StopRequest
from expunge.utils.progress import Reporter

FORMULAS = {
    "forget": {"formula": "npo(forget)", "source": "arXiv 2404.05868"},
    "rest": {"formula": "kl(others)", "source": "Expunge"},
    "retain": {"formula": "nll(retain)", "source": "arXiv 2503.13690"},
    "kl": {"formula": "kl(retain)", "source": "arXiv 2503.13690"},
    "anchor": {"formula": "kl(anchors)", "source": "Expunge"},
    "instead": {"formula": "nll(instead)", "source": "Expunge"},
}
"""Term -> what the card says of it; its weight is the setting of the same name."""


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
        raise ConfigError("dry_run is for the command line (expunge.train.dry_run.forecast): nothing is to be trained")
    with together(pick_device(config.device)) as processes, Run.check(config) as run:
        return _unlearn(config, run, reporter, processes)


def _unlearn(config: UnlearnConfig, run: Run, reporter: Reporter, processes: Processes) -> Outcome:
    begun = time.perf_counter()
    prepared = prepare(config, reporter.say)
    for warning in prepared.warnings:
        reporter.warn(warning)
    if config.from_manifest:
        for other in other_surroundings(read_manifest(config.from_manifest, "--from-manifest"), prepared.loaded.device):
            reporter.warn(f"the last digits may differ from those of the run that is repeated: {other}")
    accelerator = Accelerator(
        cpu=prepared.loaded.device.type == "cpu",
        log_with=config.report_to.split(",") if config.report_to else None,
        project_dir=config.output,
    )
    config = prepared.config
    sets = prepared.told
    trainer = Trainer(prepared, accelerator)
    trainer.check_memory()
    reporter.say(trainer.describe())
    run.open(config, facts_of(prepared))
    texts = sum(map(len, sets.values()))
    with reporter.track("losses before", texts) as advance:  # a fresh adapter changes nothing
        before = mean_losses(prepared.loaded, sets, processes=processes, progress=advance)
    if config.report_to:
        accelerator.init_trackers("expunge", config={"recipe": config.recipe, "seed": config.seed})
    with cache_folder(run.path / "cache", processes) as cache:
        trainer.write_anchors(prepared, reporter, processes)
        trainer.compute_reference(reporter, cache, run.fingerprint, processes)
        start = 0
        if config.resume:
            start, tensors, lines = run.restore()
            if start:
                trainer.load_state(tensors, lines)
        processes.agree(start, "checkpoints")
        if config.resume:
            reporter.say(f"resume: {start} of {trainer.num_steps} steps are done")
        training_begun = time.perf_counter()
        steps = train(trainer, run, reporter, start)
        training_seconds = time.perf_counter() - training_begun
    chosen = settle(trainer, steps, reporter)

    with reporter.track("losses after", texts) as advance:
        after = mean_losses(prepared.loaded, sets, processes=processes, progress=advance)
    accelerator.end_training()
    return run.finish(
        RunResult(
            losses={name: {"before": before[name], "after": after[name]} for name in after},
            texts={name: len(sets[name]) for name in after},
            steps=steps,
            training_seconds=training_seconds,
            total_seconds=time.perf_counter() - begun,
            selection=chosen,
        ),
        lambda folder: save_adapter(prepared.loaded.model, folder, base_name=config.model),
    )


def facts_of(prepared: Prepared) -> RunFacts:
    """What the manifest and the card of a run say beside its settings."""
    rows = {name: getattr(prepared, name) for name in SETS}
    if prepared.selection:
        rows |= {"members": prepared.selection.members, "nonmembers": prepared.selection.nonmembers}
    return RunFacts(
        rows=rows,
        prompt_format=str(prepared.join.join),
        prompt_format_losses=prepared.join.losses,
        terms=[
            {"name": name, "weight": weight, **FORMULAS[name]}
            for name, weight in ((name, getattr(prepared.config, f"{name}_weight")) for name in FORMULAS)
            if weight and (name != "instead" or prepared.config.instead)
        ],
        device=prepared.loaded.device,
        base_commit=getattr(prepared.loaded.base.config, "_commit_hash", None),
        warnings=prepared.warnings,
    )


def train(trainer: Trainer, run: Run, reporter: Reporter, start: int) -> int:
    """The loop: from step `start` to the last, or to where it should stop, looking, logging and saving on the way.

    Returns:
        The steps that are done.

    Raises:
        TrainingError: Training cannot go on.
        KeyboardInterrupt: Someone wants the process to stop; the step that was running is done and saved.
    """
    selector, every = trainer.selector, trainer.config.save_every
    done = start
    seen = ""
    with reporter.track("unlearning", trainer.num_steps, start) as advance, StopRequest() as stop:
        for index, step in islice(enumerate(trainer.plan.steps()), start, trainer.num_steps):
            if trainer.over:
                break
            clock = time.perf_counter()
            terms = trainer.train_step(step, index)
            tokens = sum(trainer.lengths(step))
            rate = tokens / (time.perf_counter() - clock)
            done = index + 1
            line = {"step": done, "epoch": step.epoch + 1, **terms, "tokens": tokens}
            shown = "  ".join(f"{name} {terms[name]:.3f}" for name in TERMS if terms[name])
            if selector is not None and (done % trainer.select_every == 0 or done == trainer.num_steps):
                line["selection"] = selector.look(done)
                seen = looked(line["selection"])
                if selector.course.arrived == done:
                    reporter.say(f"step {done}: at the depth of unseen texts ({seen})")
            run.log(line)
            trainer.accelerator.log(terms, step=done)
            advance(note=f"epoch {step.epoch + 1}  {shown}  {seen}  {rate:,.0f} tok/s")
            stopping = trainer.any_process(stop.requested)
            if stopping or (every and done % every == 0):
                run.save_checkpoint(trainer.state(), done)
            if stopping:
                raise KeyboardInterrupt(f"step {done} of {trainer.num_steps} is saved; --resume goes on from it")
    return done


def looked(signals: dict[str, float]) -> str:
    """One look in a few words: the membership AUC, the losses of texts to forget and of unseen ones, what is said."""
    losses = f"forget {signals['forget_nll']:.2f}  unseen {signals['holdout_nll']:.2f} nats"
    return f"AUC {signals['auc']:.2f}  {losses}  said {signals['said']:.0%}"


def settle(trainer: Trainer, steps: int, reporter: Reporter) -> dict[str, Any] | None:
    """Set the strength of the last state (after `steps`) and of the best that was seen, and take the better of them.

    Returns:
        What calibration.json should hold, and when the best state was; None where nothing was looked at.
    """
    selector, config = trainer.selector, trainer.config
    best = selector and selector.course.best
    if selector is None or best is None:
        return None
    reporter.say(f"stopped after {steps} steps: {selector.course.reason}")
    states = {steps: selector.mean, best.step: selector.best}
    looks = {look.step: look.signals for look in selector.course.looks}
    found: dict[int, Calibration] = {}
    with reporter.track("strengths", len(states) * (number_of_looks() - 1)) as advance:
        for step, values in states.items():
            take(trainer.parameters, values)
            found[step] = choose(
                selector.meter, config.goal, weighed=True, known=[looks[step]], progress=advance
            )  # fmt: skip
    step = min(found, key=lambda step: misfit_at(found[step], config.goal))
    take(trainer.parameters, states[step])
    chosen = found[step]
    trained = config.lora_alpha or config.lora_rank
    set_alpha(trainer.model, trained * chosen.scale)
    trainer.model.peft_config["default"].lora_alpha = trained * chosen.scale
    reporter.say(f"state of step {step} at {chosen.scale:g} times its strength: {chosen.verdict}")
    content = record(
        chosen,
        config.goal,
        trained_alpha=trained,
        selection=selector.meter.selection,
        marks=marks(trainer.selection_hashes),
    )
    return {**content, "best_step": step, "stopped": selector.course.reason}
