"""What is done with a finished run: `expunge.merge`, `expunge.calibrate` and `expunge.load_unlearned`."""

from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from expunge.api.inputs import Texts, checked, given_texts
from expunge.config import CalibrateConfig, MergeConfig
from expunge.errors import ConfigError
from expunge.model.load import load_model
from expunge.model.saved import OWN, attach_adapter
from expunge.model.source import BASE, adapter_folder, check_model, commit_of, source_of
from expunge.runs.manifest import check_base
from expunge.runs.record import read_manifest
from expunge.train import calibrate as scales
from expunge.train import merge as merging
from expunge.train.scale import Calibration
from expunge.utils.isolated import isolated
from expunge.utils.progress import reporter_for


@isolated
def merge(
    run: str | Path,
    output: str | Path,
    *,
    forget: Texts | None = None,
    retain: Texts | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> merging.MergeReport:
    """Write adapter and base as one plain model, and compare it with the adapter on the run's own texts.

    Args:
        run: A finished run.
        output: Folder for the model.
        forget: The run's texts to forget, where they are not where they were, or were in memory.
        retain: The run's texts to keep, likewise.
        progress: As for `unlearn`.
        settings: Everything else that `MergeConfig` holds (`dtype="bfloat16"`, `overwrite=True`).

    Raises:
        UserError: `run` is not a finished run, its texts are gone or others, `output` exists, or a setting cannot be
            used.
    """
    named = given_texts(forget=forget, retain=retain)
    config = checked(MergeConfig, run=str(run), output=str(output), **named, **settings)
    return merging.merge(config, reporter_for(progress))


@isolated
def calibrate(
    run: str | Path | CalibrateConfig,
    *,
    forget: Texts | None = None,
    retain: Texts | None = None,
    test: Texts | None = None,
    holdout: Texts | None = None,
    instead: Texts | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> Calibration:
    """Choose the scale of a finished adapter again, and write it into the run.

    Args:
        run: Run directory, or all settings as a config.
        forget: The run's texts to forget, where they are not where they were, or were in memory.
        retain: The run's texts to keep, likewise.
        test: The run's texts to test on, likewise.
        holdout: Texts like the forget set that the model has never seen; by default the run's.
        instead: What the run's model should say instead, likewise.
        progress: As for `unlearn`.
        settings: Everything else that `CalibrateConfig` holds.

    Raises:
        UserError: Not a finished run, too few texts to choose by, or a setting that cannot be used.
    """
    named = given_texts(forget=forget, retain=retain, test=test, holdout=holdout, instead=instead)
    if isinstance(run, CalibrateConfig):
        if named or settings:
            raise ConfigError("calibrate: give settings in the config, or a run and settings, not both")
        return scales.calibrate(run, reporter_for(progress))
    return scales.calibrate(checked(CalibrateConfig, run=str(run), **named, **settings), reporter_for(progress))


@isolated
def load_unlearned(
    run: str, *, model: str | None = None, dtype: str = "float32", device: str = "auto", trust_remote_code: bool = False
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The unlearned model of a run, ready to use: its base with the adapter on, and the tokenizer.

    Args:
        run: Run directory or adapter folder.
        model: The base model; the one that the adapter names when None.
        dtype: `float32`, `bfloat16` or `auto`.
        device: `auto`, `cpu`, `cuda` ...
        trust_remote_code: Run code that comes with the model.

    Raises:
        ConfigError: `dtype` is none of those.
        ModelError: Base or adapter cannot be loaded or do not fit each other.
        RunError: The base is another model than the one that the run was made on, where the run tells.
    """
    folder = adapter_folder(run)
    source = source_of(str(folder))
    name = model or source.base_name
    revision = source.revision if name == source.base_name else None
    if made_on := _made_on(folder, name, source.base_name):
        commit = commit_of(check_model(name, trust_remote_code=trust_remote_code, revision=revision))
        check_base(*made_on, f"--run {run}", commit)
    loaded = load_model(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code, revision=revision)
    return attach_adapter(loaded, run), loaded.tokenizer


def _made_on(adapter: Path, name: str, named: str) -> tuple[str, dict[str, Any]] | None:
    """A base and the manifest of the run that it can be compared with.

    None of an adapter without its run, of a run on an adapter (whose manifest knows both as one), and of a folder in
    place of a name on the Hub or the other way round.
    """
    file = adapter.absolute().parent / "manifest.json"
    stacked = any((adapter / part).exists() for part in (OWN, BASE))
    if stacked or adapter.absolute().name != "adapter" or not file.is_file():
        return None
    if name != named and Path(name).exists() != Path(named).is_absolute():
        return None
    manifest = read_manifest(file, "--run")
    if Path(name).is_file() and Path(str(manifest["settings"].get("model"))).suffix != ".gguf":
        name = str(Path(name).parent)  # the run was given the folder of the GGUF file
    return name, manifest
