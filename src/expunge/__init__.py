"""Expunge: make a causal language model forget given texts, and measure that it did.

    from expunge import EvaluateConfig, UnlearnConfig, evaluate, load_unlearned, unlearn

Importing the package loads neither torch nor transformers; the public names load what they need when they are used.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["EvaluateConfig", "UnlearnConfig", "__version__", "evaluate", "load_unlearned", "unlearn"]

_HOMES = {
    "UnlearnConfig": "expunge.config",
    "unlearn": "expunge.train.loop",
    "evaluate": "expunge.evaluation.run",
    "EvaluateConfig": "expunge.config",
    "load_unlearned": "expunge.model.adapter",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
