"""`expunge calibrate`: set the strength of a finished adapter by the selection half of the membership texts.

RUN/adapter/            its alpha is multiplied by the chosen scale, so that plain PEFT loads the calibrated adapter
RUN/calibration.json    target, verdict, the curve over all scales, hashes of the selection texts (which
                        `expunge evaluate` leaves out of what it reports)
"""

import dataclasses
import json
from itertools import compress
from pathlib import Path

from peft.tuners.lora import LoraLayer

from expunge import run_dir
from expunge.config import CalibrateConfig, UnlearnConfig
from expunge.data.examples import Example, parse_columns, read_examples
from expunge.data.lume import read_lume
from expunge.data.tokenize import Join, tokenize_all
from expunge.errors import ConfigError, DataError
from expunge.evaluate.membership import encode_documents
from expunge.merge import run_settings
from expunge.model.adapter import attach_adapter
from expunge.model.load import LoadedModel, load_model
from expunge.prepare import read_sets
from expunge.progress import Reporter
from expunge.selection import FILE, example_hashes, read_calibration, selection_half
from expunge.strength import RETAIN_ROWS, Calibration, Selection, Target, choose, number_of_looks

FEWEST = 8
"""Fewest selection texts on either side; a membership AUC of fewer says next to nothing."""


def calibrate(config: CalibrateConfig, reporter: Reporter | None = None) -> Calibration:
    """Choose the adapter's scale on the selection texts and write it into the run.

    A run that was calibrated before is calibrated anew, from the strength that it was trained with.

    Raises:
        RunError: Not a finished run.
        DataError: There are no texts to choose by, or too few.
        ConfigError: A setting cannot be used.
    """
    reporter = reporter or Reporter(quiet=True)
    goal = Target(
        _named("--target", "auc", config.target),
        _named("--floor", "retain", config.floor),
        _named("--ceiling", "drift", config.ceiling),
    )
    folder = Path(config.run)
    settings = run_settings(config.run)
    sets, _ = read_sets(settings)
    members, nonmembers = _membership_texts(settings, config.holdout, sets.forget)
    hashes, (members, nonmembers) = _selected(members, nonmembers)

    loaded = load_model(
        settings.model, dtype=config.dtype, device=config.device, trust_remote_code=settings.trust_remote_code
    )
    attach_adapter(loaded, config.run)
    earlier = read_calibration(folder)
    adapter_config = folder / "adapter" / "adapter_config.json"
    adapter_settings = json.loads(adapter_config.read_text())
    trained = earlier["trained_alpha"] if earlier else adapter_settings["lora_alpha"]
    _set_alpha(loaded, trained)
    join = Join(settings.join, settings.end_of_text == "yes")
    retain = tokenize_all(
        loaded.tokenizer,
        sets.retain[:: max(1, len(sets.retain) // RETAIN_ROWS)][:RETAIN_ROWS],
        join,
        max_length=settings.max_length,
        truncate_completions=True,
    )
    sides = (
        [document.row for document in encode_documents(loaded.tokenizer, side, join, max_length=settings.max_length)]
        for side in (members, nonmembers)
    )
    with reporter.track("scales", number_of_looks()) as advance:
        found = choose(loaded, Selection(*sides, retain), goal, progress=advance)
    content = {
        "schema": 1,
        "scale": found.scale,
        "trained_alpha": trained,
        "reached": found.reached,
        "verdict": found.verdict,
        "target": dataclasses.asdict(goal),
        "curve": [dataclasses.asdict(signals) for signals in found.curve],
        "texts": {"members": len(members), "nonmembers": len(nonmembers), "retain": len(retain)},
        "selection_sha256": hashes,
    }
    # The record goes first: whatever happens then, the trained strength is known and the selection is left out.
    run_dir.write_json(folder / FILE, content, overwrite=True)
    run_dir.write_json(adapter_config, adapter_settings | {"lora_alpha": trained * found.scale}, overwrite=True)
    return found


def _membership_texts(
    settings: UnlearnConfig, holdout: str | None, forget: list[Example]
) -> tuple[list[Example], list[Example]]:
    """Texts that the model was trained on, and texts that it has never seen."""
    holdout = holdout or settings.holdout
    if holdout:
        columns = parse_columns(settings.columns) if settings.columns and not settings.benchmark else None
        return forget, read_examples(holdout, columns=columns)
    if settings.benchmark:
        found = read_lume(settings.data or "", settings.split)
        if found.member is not None and found.nonmember is not None:
            return found.member, found.nonmember
    raise DataError(
        "there are no texts that the model has never seen, and without them nobody can know how deep is deep enough: "
        "give --holdout"
    )


def _selected(members: list[Example], nonmembers: list[Example]) -> tuple[list[str], list[list[Example]]]:
    """The selection half of both sides, and the hashes of its texts."""
    sides = (("forgotten", members, example_hashes(members)), ("unseen", nonmembers, example_hashes(nonmembers)))
    both = set(sides[0][2]) & set(sides[1][2])
    if both:
        raise DataError(
            f"{len(both)} of the unseen texts are among those to be forgotten: give texts that the model has never seen"
        )
    halves, chosen = [], set()
    for name, side, hashes in sides:
        half = selection_half(hashes)
        if sum(half) < FEWEST:
            raise DataError(
                f"{sum(half)} selection texts on the {name} side (half of {len(side)}): at least {FEWEST} are needed"
            )
        chosen |= set(compress(hashes, half))
        halves.append(list(compress(side, half)))
    return sorted(chosen), halves


def _set_alpha(loaded: LoadedModel, alpha: float) -> None:
    for module in loaded.model.modules():
        if isinstance(module, LoraLayer):
            module.scaling.update({name: alpha / module.r[name] for name in module.scaling})


def _named(flag: str, name: str, text: str) -> float:
    found, equals, value = text.partition("=")
    try:
        number = float(value)
        if found.strip() == name and equals and 0 <= number <= 1:
            return number
    except ValueError:
        pass
    raise ConfigError(f"{flag} {text}: write {name}=NUMBER, the number between 0 and 1")
