"""The one schema for Python arguments, YAML keys and command-line flags."""

from expunge.config.evaluate import ATTACKS, CalibrateConfig, EvaluateConfig
from expunge.config.unlearn import RECIPES, UnlearnConfig

__all__ = ["ATTACKS", "RECIPES", "CalibrateConfig", "EvaluateConfig", "UnlearnConfig"]
