"""Expunge: make a causal language model forget given texts, and measure that it did.

    from expunge import UnlearnConfig, unlearn

    outcome = unlearn(UnlearnConfig(model="M", forget="forget.jsonl", retain="retain.jsonl", output="run"))

Everything that the command line can is here. Importing the package loads neither torch nor transformers; the public
names load what they need when they are used.
"""

import sys

# `python -m expunge` looks for every module in the folder where it is started first, and that may be somebody else's.
if sys.argv[:1] == ["-m"] and "-m expunge" in " ".join(sys.orig_argv) and not sys.flags.safe_path:
    del sys.path[0]

from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "CalibrateConfig": "expunge.config",
    "Criteria": "expunge.config",
    "EvaluateConfig": "expunge.config",
    "UnlearnConfig": "expunge.config",
    "calibrate": "expunge.train.calibrate",
    "compare": "expunge.evaluation.compare",
    "evaluate": "expunge.evaluation.run",
    "forecast": "expunge.train.dry_run",
    "forget_loss": "expunge.losses",
    "load_unlearned": "expunge.model.adapter",
    "merge": "expunge.train.merge",
    "score_predictions": "expunge.evaluation.run",
    "unlearn": "expunge.train.loop",
    "verdict": "expunge.report",
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
