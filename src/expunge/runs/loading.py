"""The model that a finished run stands on, as the commands that go on from the run load it."""

from pathlib import Path
from typing import Any

from expunge.config import UnlearnConfig
from expunge.errors import ModelError
from expunge.model.load import LoadedModel, load_model
from expunge.runs.manifest import check_base
from expunge.runs.reads import check_unchanged, model_state
from expunge.runs.record import check_adapter_kept, read_manifest


def load_base(run: str | Path, settings: UnlearnConfig, **options: Any) -> tuple[dict[str, Any], LoadedModel]:
    """The manifest and the base of a finished run whose base and adapter are those that the manifest tells of.

    Args:
        run: Its directory.
        settings: Its settings, see `run_settings`.
        options: How the base is loaded, see `load_model`.

    Raises:
        RunError: The base or the adapter is another one, or the manifest cannot be read.
        ModelError: The base cannot be loaded, or was changed while it was; it is named as the run's.
    """
    flag, before = f"--run {run}", model_state(settings.model)
    manifest = read_manifest(Path(run) / "manifest.json", "--run")
    check_base(settings.model, manifest, flag)
    check_adapter_kept(Path(run), manifest, "--run")
    try:
        loaded = load_model(settings.model, revision=settings.revision, **options)
        if commit := getattr(loaded.base.config, "_commit_hash", None):  # known of a base on the Hub from now on
            check_base(settings.model, manifest, flag, commit)
        check_unchanged(before, settings.model)
    except ModelError as error:  # where --model is said, the run is meant
        raise ModelError(str(error).replace("--model", f"{flag}: its base", 1)) from error
    return manifest, loaded
