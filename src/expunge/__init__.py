"""Expunge: make a causal language model forget given texts, and measure that it did.

    import expunge

    outcome = expunge.unlearn("MODEL", forget="forget.jsonl", retain="retain.jsonl", output="run")
    print(outcome.evaluate())
    print(outcome.verdict)

Everything that the command line can is here (docs/python.md). Importing the package loads neither torch nor
transformers; the public names load what they need when they are used.
"""

import sys

# `python -m expunge` looks for every module in the folder where it is started first, and that may be somebody else's.
if sys.argv[:1] == ["-m"] and "-m expunge" in " ".join(sys.orig_argv) and not sys.flags.safe_path:
    del sys.path[0]

from typing import TYPE_CHECKING, Any

from expunge.utils.versions import __version__

if TYPE_CHECKING:
    from expunge.api.eliciting import elicit as elicit
    from expunge.api.evaluating import Evaluation as Evaluation
    from expunge.api.evaluating import evaluate as evaluate
    from expunge.api.finished import calibrate as calibrate
    from expunge.api.finished import load_unlearned as load_unlearned
    from expunge.api.finished import merge as merge
    from expunge.api.unlearning import Outcome as Outcome
    from expunge.api.unlearning import forecast as forecast
    from expunge.api.unlearning import unlearn as unlearn
    from expunge.config import CalibrateConfig as CalibrateConfig
    from expunge.config import Criteria as Criteria
    from expunge.config import ElicitConfig as ElicitConfig
    from expunge.config import EvaluateConfig as EvaluateConfig
    from expunge.config import MergeConfig as MergeConfig
    from expunge.config import UnlearnConfig as UnlearnConfig
    from expunge.demo.run import run_demo as run_demo
    from expunge.errors import UserError as UserError
    from expunge.evaluation.compare import compare as compare
    from expunge.evaluation.run import score_predictions as score_predictions
    from expunge.losses import forget_loss as forget_loss
    from expunge.report import verdict as verdict
    from expunge.report import write_cards as write_cards
    from expunge.report import write_report as write_report
    from expunge.runs.hub import push as push
    from expunge.train.callbacks import Callback as Callback

_HOMES = {
    "CalibrateConfig": "expunge.config",
    "MergeConfig": "expunge.config",
    "Callback": "expunge.train.callbacks",
    "Criteria": "expunge.config",
    "ElicitConfig": "expunge.config",
    "EvaluateConfig": "expunge.config",
    "Evaluation": "expunge.api.evaluating",
    "Outcome": "expunge.api.unlearning",
    "UnlearnConfig": "expunge.config",
    "UserError": "expunge.errors",
    "calibrate": "expunge.api.finished",
    "compare": "expunge.evaluation.compare",
    "elicit": "expunge.api.eliciting",
    "evaluate": "expunge.api.evaluating",
    "forecast": "expunge.api.unlearning",
    "forget_loss": "expunge.losses",
    "load_unlearned": "expunge.api.finished",
    "merge": "expunge.api.finished",
    "push": "expunge.runs.hub",
    "run_demo": "expunge.demo.run",
    "score_predictions": "expunge.evaluation.run",
    "unlearn": "expunge.api.unlearning",
    "verdict": "expunge.report",
    "write_cards": "expunge.report",
    "write_report": "expunge.report",
}
"""Public name -> the module that it comes from."""
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
