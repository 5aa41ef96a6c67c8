"""Expunge: make a causal language model forget given texts, and measure that it did.

    from expunge import EvaluateConfig, UnlearnConfig, evaluate, load_unlearned, unlearn

Importing the package loads neither torch nor transformers; the public names load what they need when they are used.
"""

import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"
__all__ = ["EvaluateConfig", "UnlearnConfig", "__version__", "evaluate", "load_unlearned", "unlearn"]

_HOMES = {
    "UnlearnConfig": "expunge.config",
    "unlearn": "expunge.unlearn",
    "evaluate": "expunge.evaluate.run",
    "EvaluateConfig": "expunge.config",
    "load_unlearned": "expunge.model.adapter",
}


def _public(name: str) -> property:
    def find(package: ModuleType) -> Any:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)

    # The import system stores a submodule in its package under the submodule's name; the public function of the same
    # name stays what the attribute gives.
    return property(find, lambda package, module: None)


class _Package(ModuleType):
    """The package, with its public names resolved on use."""


for _name in _HOMES:
    setattr(_Package, _name, _public(_name))
sys.modules[__name__].__class__ = _Package
