"""The one schema for Python arguments, YAML keys and command-line flags."""

from expunge.config.evaluate import ATTACKS, CalibrateConfig, EvaluateConfig
from expunge.config.unlearn import RECIPES, SETS, UnlearnConfig

__all__ = ["ATTACKS", "RECIPES", "SETS", "CalibrateConfig", "EvaluateConfig", "UnlearnConfig"]
