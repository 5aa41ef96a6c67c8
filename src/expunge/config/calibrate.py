"""The settings of a calibration."""

from dataclasses import dataclass, replace
from typing import Literal

from expunge.config.checks import UNIT, Plain, check_types, first_failed
from expunge.config.criteria import Criteria


@dataclass(kw_only=True)
class CalibrateConfig(Plain):
    """What the scale of an adapter is chosen by.

    Attributes:
        run: Finished run; the adapter in it gets the scale.
        holdout: Texts like the forget set that the model has never seen; by default the run's, or the benchmark's.
        forget: The run's texts to forget, where they are not where they were.
        retain: The run's texts to keep, where they are not where they were.
        test: The run's texts to test on, where they are not where they were.
        instead: What the run's model should say instead, where that is not where it was.
        target_auc: Membership AUC, by loss and by min-k, of a model that never saw the texts: 0.5 by chance, or a
            retrained model's; by default what the run was to reach, like the next two. Of the scales that miss the
            criteria by least, that is taken at which the sum of the two distances from it is smallest.
        min_retain: Least share of the retain scores to keep.
        max_drift: Largest relative rise of the loss of unseen texts.
        dtype: `auto` (that of the run), `float32` or `bfloat16`.
        device: `auto`, `cpu`, `cuda` ...
        trust_remote_code: Run code that comes with the model.
    """

    run: str
    holdout: str | None = None
    forget: str | None = None
    retain: str | None = None
    test: str | None = None
    instead: str | None = None
    target_auc: float | None = None
    min_retain: float | None = None
    max_drift: float | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    trust_remote_code: bool = False

    def validate(self) -> None:
        """Check every range; nothing is loaded.

        Raises:
            ConfigError: The first setting that cannot be used, named by its flag.
        """
        check_types(self)
        first_failed(UNIT.of(self, "target_auc", "min_retain", "max_drift"))

    def criteria(self, run: Criteria) -> Criteria:
        """What is to be met: what the run was to meet, but for what is given."""
        given = {name: getattr(self, name) for name in ("target_auc", "min_retain", "max_drift")}
        return replace(run, **{name: value for name, value in given.items() if value is not None})
