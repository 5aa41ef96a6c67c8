"""What is done with a finished run: `expunge.merge` and `expunge.calibrate`."""

from pathlib import Path
from typing import Any

from expunge.api.inputs import Texts, checked, given_texts, named_texts, without_deprecations
from expunge.config import CalibrateConfig
from expunge.errors import ConfigError
from expunge.train import calibrate as scales
from expunge.train import merge as merging
from expunge.train.scale import Calibration
from expunge.utils.progress import reporter_for


@without_deprecations
def merge(
    run: str | Path,
    output: str | Path,
    *,
    forget: Texts | None = None,
    retain: Texts | None = None,
    dtype: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> merging.MergeReport:
    """Write adapter and base as one plain model, and compare it with the adapter on the run's own texts.

    Args:
        run: A finished run.
        output: Folder for the model.
        forget: The run's texts to forget, where they are not where they were, or were in memory.
        retain: The run's texts to keep, likewise.
        dtype: Of all weights (`float32`, `bfloat16`, `float16`); each keeps that of the base when None.
        device: Where to compute.
        overwrite: Replace an earlier merged model.
        trust_remote_code: Run code that comes with the model.

    Raises:
        UserError: `run` is not a finished run, its texts are gone or others, or `output` exists.
    """
    return merging.merge(
        run,
        output,
        forget=named_texts("forget", forget),
        retain=named_texts("retain", retain),
        dtype=dtype,
        device=device,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
    )


@without_deprecations
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
