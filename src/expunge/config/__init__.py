"""The one schema for Python arguments, YAML keys and command-line flags."""

from expunge.config.calibrate import CalibrateConfig
from expunge.config.criteria import Criteria
from expunge.config.elicit import ElicitConfig
from expunge.config.evaluate import EvaluateConfig
from expunge.config.merge import MergeConfig
from expunge.config.recipes import RECIPES
from expunge.config.unlearn import SETS, SPLIT, UnlearnConfig

__all__ = [
    "RECIPES", "SETS", "SPLIT", "CalibrateConfig", "Criteria", "ElicitConfig", "EvaluateConfig", "MergeConfig",
    "UnlearnConfig",
]  # fmt: skip
