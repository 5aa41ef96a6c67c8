"""`expunge calibrate`: set the scale of a finished adapter by the selection half of the membership texts.

RUN/adapter/            its alpha is multiplied by the chosen scale, so that plain PEFT loads the calibrated adapter
RUN/manifest.json       its losses, and with them the adapter's card, become those at this scale
RUN/calibration.json    criteria, verdict, the curve over all scales, and keyed hashes of the selection texts, of
                        earlier ones too: `expunge evaluate` leaves them out of what it reports
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel

from expunge.config import SETS, CalibrateConfig, UnlearnConfig
from expunge.data.holdout import keyed_hashes, split_off, without_selection
from expunge.data.sets import membership_texts, read_sets
from expunge.data.tokenize import TokenizedExample
from expunge.model.adapter import set_scale
from expunge.model.load import LoadedModel
from expunge.model.logps import mean_losses
from expunge.model.saved import VERIFIED, attach_adapter, rescaled, verify_saved
from expunge.runs.card import model_card
from expunge.runs.loading import load_base
from expunge.runs.lock import hold
from expunge.runs.record import CALIBRATION, VERDICT, adapter_hashes, read_calibration
from expunge.runs.run import SUMMARY
from expunge.runs.settings import run_settings
from expunge.runs.texts import check_texts, run_rows
from expunge.train.scale import MOST_SCALES, Calibration, choose_scale, record, unchosen
from expunge.train.validation import ValidationRows, Validator
from expunge.utils import coarse, files
from expunge.utils.progress import Reporter

WEAKER = 0.9
"""A scale is told to forget less where so little of the forget set's rise in loss is left."""


def calibrate(config: CalibrateConfig, reporter: Reporter | None = None) -> Calibration:
    """Choose the adapter's scale on the selection texts and write it into the run.

    A run that was calibrated before is calibrated anew, from the alpha that it was trained with.

    Raises:
        RunError: Not a finished run.
        DataError: There are no texts to choose by, or too few.
        ConfigError: A setting cannot be used.
    """
    config.validate()
    settings = run_settings(config.run, **{name: getattr(config, name) for name in SETS})
    with hold(Path(config.run)):
        return _calibrate(config, settings, reporter or Reporter(quiet=True))


def _calibrate(config: CalibrateConfig, settings: UnlearnConfig, reporter: Reporter) -> Calibration:
    folder = Path(config.run)
    with reporter.working("reading the texts"):
        sets = read_sets(settings)
        judged = membership_texts(sets)
    with reporter.working("loading the model"):
        manifest, loaded = load_base(
            folder,
            settings,
            dtype=settings.dtype if config.dtype == "auto" else config.dtype,
            device=config.device,
            load_in_4bit=settings.load_in_4bit,
            trust_remote_code=config.trust_remote_code,
            mend="take --dtype bfloat16 or a larger machine",
        )
    earlier = read_calibration(folder)
    pattern = (earlier or {}).get("trained_alpha_pattern") or {}
    alphas = {"lora_alpha": earlier["trained_alpha"], "alpha_pattern": pattern} if earlier else None
    with reporter.working("putting the adapter in"):
        model = attach_adapter(loaded, config.run, alphas)
    with reporter.working("tokenizing the texts"):
        rows = {name: run_rows(settings, loaded.tokenizer, getattr(sets, name)) for name in SETS}
        check_texts(manifest, settings, {name: side for name, side in rows.items() if name != "holdout"})
        halves = split_off(judged, sets.nonmembers, sets.retain, loaded.tokenizer)
        steering = (halves.members, halves.nonmembers, halves.short)
        members, nonmembers, guessed = (run_rows(settings, loaded.tokenizer, examples) for examples in steering)
    looked_at = sorted({*keyed_hashes(halves.hashes), *(earlier["selection_hmac"] if earlier else ())})
    judged_on = ValidationRows.of(members, nonmembers, rows["retain"], rows["forget"], guessed)
    criteria = config.criteria(settings.criteria)
    with reporter.track("adapter scales", MOST_SCALES) as advance:
        found = choose_scale(Validator(loaded, judged_on), criteria, progress=advance)
    content = record(found, criteria, unchosen(model, looked_at), judged_on)
    content |= {name: earlier[name] for name in ("best_step", "stopped") if earlier and name in earlier}
    with reporter.working("tokenizing the unseen texts"):
        rows["holdout"] = run_rows(settings, loaded.tokenizer, without_selection(sets.holdout, content))
    manifest = _with_losses(manifest, loaded, rows, found.scale, reporter)
    manifest["selection"] = {name: content[name] for name in SUMMARY if name in content}
    with reporter.working("saving the adapter, and reading it back"):
        _write(folder, content, manifest, loaded, [row.input_ids for row in rows["forget"][:VERIFIED]])
    return found


def _with_losses(
    manifest: dict[str, Any],
    loaded: LoadedModel,
    rows: Mapping[str, list[TokenizedExample]],
    scale: float,
    reporter: Reporter,
) -> dict[str, Any]:
    """The manifest with the losses at another scale; a set of which all texts have steered the adapter has none."""
    losses = manifest["loss_nats_per_completion_token"]
    told = {name: rows[name] for name in losses if rows[name]}
    assert isinstance(loaded.model, PeftModel)
    unseen = {name: texts for name, texts in told.items() if name == "holdout"}  # other ones than before, perhaps
    with reporter.working("losses before and after"):
        set_scale(loaded.model, 0.0)
        before = {name: entry["before"] for name, entry in losses.items()} | mean_losses(loaded, unseen)
        set_scale(loaded.model, scale)
        after = mean_losses(loaded, told)
    _tell(losses["forget"], after["forget"], reporter)
    texts = {name: len(side) for name, side in told.items()}
    found = {name: {"before": before[name], "after": after[name]} for name in told}
    manifest |= {"loss_nats_per_completion_token": coarse.losses(found, texts), "loss_texts": texts}
    return manifest


def _write(
    folder: Path,
    content: dict[str, Any],
    manifest: dict[str, Any],
    loaded: LoadedModel,
    rows: Sequence[Sequence[int]],
) -> None:
    """All files of the run that a new scale changes, at one commit point, once the adapter is proven on `rows`."""
    adapter = folder / "adapter"
    with rescaled(loaded, adapter, content["scale"]) as copy, files.transaction(folder):
        verify_saved(loaded, copy, rows, final=adapter)
        (folder / VERDICT).unlink(missing_ok=True)
        for path in sorted(file for file in copy.rglob("*") if file.is_file()):
            place, data = adapter / path.relative_to(copy), path.read_bytes()
            if place.read_bytes() != data:
                files.write_bytes(place, data, overwrite=True)
        files.write_json(folder / CALIBRATION, content, overwrite=True)
        files.write_json(folder / "manifest.json", manifest | adapter_hashes(copy), overwrite=True)
        files.write_text(adapter / "README.md", model_card(manifest), overwrite=True)


def _tell(forget: Mapping[str, float | None], now: float | None, reporter: Reporter) -> None:
    """What the new scale does to the forget set, louder where it gives back what was forgotten."""
    before, was = forget["before"], forget["after"]
    if before is None or was is None or now is None:
        return
    line = f"loss of the forget set: {before:.3f} untouched, {was:.3f} at the scale before, {now:.3f} now"
    if now - before < WEAKER * (was - before):
        reporter.warn(f"{line}: the adapter forgets less than it did; calibrate with wider bounds to go back")
    else:
        reporter.say(line)
