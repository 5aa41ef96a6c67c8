"""`expunge calibrate`: set the strength of a finished adapter by the selection half of the membership texts.

RUN/adapter/            its alpha is multiplied by the chosen scale, so that plain PEFT loads the calibrated adapter
RUN/manifest.json       its losses, and with them the adapter's card, become those at this strength
RUN/calibration.json    target, verdict, the curve over all scales, marks of the selection texts, of earlier ones too
                        (which `expunge evaluate` leaves out of what it reports)
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from expunge.config import SETS, CalibrateConfig, UnlearnConfig
from expunge.config.criteria import read_goal
from expunge.data.examples import parse_columns, read_examples
from expunge.data.holdout import FILE, marks, read_calibration, split_off, without_selection
from expunge.errors import DataError
from expunge.model.adapter import attach_adapter, set_alpha
from expunge.model.load import load_model
from expunge.model.logps import mean_losses
from expunge.runs.card import model_card
from expunge.runs.manifest import read_manifest
from expunge.runs.run import SUMMARY
from expunge.runs.settings import run_settings
from expunge.train.merge import run_rows
from expunge.train.scale import Calibration, choose, number_of_looks, record
from expunge.train.setup import Sets, membership_texts, read_sets
from expunge.train.validation import Meter, Selection
from expunge.utils import files
from expunge.utils.progress import Reporter

WEAKER = 0.9
"""A strength is told to forget less where so little of the forget set's rise in loss is left."""


def calibrate(config: CalibrateConfig, reporter: Reporter | None = None) -> Calibration:
    """Choose the adapter's scale on the selection texts and write it into the run.

    A run that was calibrated before is calibrated anew, from the strength that it was trained with.

    Raises:
        RunError: Not a finished run.
        DataError: There are no texts to choose by, or too few.
        ConfigError: A setting cannot be used.
    """
    reporter = reporter or Reporter(quiet=True)
    goal = read_goal(config.target, config.floor, config.ceiling)
    folder = Path(config.run)
    settings = run_settings(config.run)
    sets, _ = read_sets(settings)
    judged = membership_texts(_with_holdout(sets, settings, config.holdout))
    earlier = read_calibration(folder)

    loaded = load_model(
        settings.model,
        dtype=settings.dtype if config.dtype == "auto" else config.dtype,
        device=config.device,
        load_in_4bit=settings.load_in_4bit,
        trust_remote_code=config.trust_remote_code,
    )
    attach_adapter(loaded, config.run)
    adapter_config = folder / "adapter" / "adapter_config.json"
    adapter_settings = json.loads(adapter_config.read_text())
    trained = earlier["trained_alpha"] if earlier else adapter_settings["lora_alpha"]
    set_alpha(loaded.model, trained)
    rows = {name: run_rows(settings, loaded.tokenizer, getattr(sets, name)) for name in SETS}
    hashes, halves = split_off(judged, sets.retain, loaded.tokenizer)
    looked_at = sorted({*marks(hashes), *(earlier["selection_sha256"] if earlier else ())})
    members, nonmembers = (run_rows(settings, loaded.tokenizer, own) for own in halves)
    selection = Selection.of(members, nonmembers, rows["retain"], rows["forget"])
    with reporter.track("scales", number_of_looks()) as advance:
        found = choose(Meter(loaded, selection), goal, progress=advance)
    content = record(found, goal, trained_alpha=trained, selection=selection, marks=looked_at)
    content |= {name: earlier[name] for name in ("best_step", "stopped") if earlier and name in earlier}
    manifest = read_manifest(folder / "manifest.json", "--run")
    losses = manifest["loss_nats_per_completion_token"]
    rows["holdout"] = run_rows(settings, loaded.tokenizer, without_selection(sets.holdout, content))
    told = {name: rows[name] for name in losses}
    set_alpha(loaded.model, 0.0)
    unseen = {name: texts for name, texts in told.items() if name == "holdout"}  # other ones than before, perhaps
    before = {name: own["before"] for name, own in losses.items()} | mean_losses(loaded, unseen)
    set_alpha(loaded.model, trained * found.scale)
    after = mean_losses(loaded, told)
    _tell(losses["forget"], after["forget"], reporter)
    manifest["loss_nats_per_completion_token"] = {
        name: {"before": before[name], "after": after[name]} for name in losses
    }
    manifest["loss_texts"] = {name: len(told[name]) for name in losses}
    manifest["selection"] = {name: content[name] for name in SUMMARY if name in content}
    # The record goes first: whatever happens then, the trained strength is known and the selection is left out.
    files.write_json(folder / FILE, content, overwrite=True)
    files.write_json(adapter_config, adapter_settings | {"lora_alpha": trained * found.scale}, overwrite=True)
    files.write_json(folder / "manifest.json", manifest, overwrite=True)
    files.write_text(folder / "adapter" / "README.md", model_card(manifest), overwrite=True)
    return found


def _tell(forget: Mapping[str, float | None], now: float | None, reporter: Reporter) -> None:
    """What the new strength does to the forget set, louder where it gives back what was forgotten."""
    before, was = forget["before"], forget["after"]
    if before is None or was is None or now is None:
        return
    line = f"loss of the forget set: {before:.3f} untouched, {was:.3f} at the strength before, {now:.3f} now"
    if now - before < WEAKER * (was - before):
        reporter.warn(f"{line}: the adapter forgets less than it did; calibrate with wider bounds to go back")
    else:
        reporter.say(line)


def _with_holdout(sets: Sets, settings: UnlearnConfig, holdout: str | None) -> Sets:
    """The sets with the texts of `holdout` as those that the model has never seen, or with the run's own."""
    if holdout:
        columns = parse_columns(settings.columns) if settings.columns else None
        return replace(sets, members=sets.forget, nonmembers=read_examples(holdout, columns=columns))
    if not sets.nonmembers:
        raise DataError(
            "there are no texts that the model has never seen, and without them nobody can know how deep is deep "
            "enough: give --holdout"
        )
    return sets
