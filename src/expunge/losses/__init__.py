"""Forget losses, one method a file, and the registry that everything else reads.

A method is a small frozen dataclass: its fields are its parameters (`--loss-args`), `needs` says what the trainer has
to bring along, and calling it on a `TokenBatch` gives the scalar that is minimised. A file that stands in this folder
is registered: names, formulas and sources in the card, the manifest, the report, `--help` and the docs come from here.

| `needs` | what the batch then holds |
|---|---|
| `ref_logps` | log-probabilities of the targets under the untouched model |
| `ref_states` | its final hidden states, which fix its whole distribution |
| `target_nll` | the NLL that each token should end with, from texts that were never seen |
| `pairs` | the same prompts with another completion each; their log-probabilities where `ref_logps` is needed, too |
| `hidden` | the policy's hidden states behind the layer `loss.layer` |

What changes within a method while it runs has a column in the log: one that it names in `columns`, and puts into
`batch.noted`.
"""

import dataclasses
import pkgutil
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, ClassVar, Protocol, get_type_hints

from torch import Tensor

from expunge.config.checks import Range
from expunge.errors import ConfigError
from expunge.losses.batch import TokenBatch
from expunge.utils.again import is_again

NEEDS = ("ref_logps", "ref_states", "target_nll", "pairs", "hidden")
TERMS = ("forget", "instead", "retain", "kl", "replay")
LOGGED = (*TERMS, "step", "epoch", "tokens", "loss", "grad_norm", "learning_rate")
"""What the log has of every step."""
TEXTS_ALONE = {"pairs", "ref_logps"}
"""Needs of what is said of texts as they stand alone: with these no text stands after other tokens."""


class ForgetLoss(Protocol):
    """What a registered method is."""

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    columns: ClassVar[tuple[str, ...]]

    def __call__(self, batch: TokenBatch) -> Tensor:
        """The share of a micro-batch in the step's loss; micro-batches add up to it."""
        ...


FORGET_LOSSES: dict[str, type[Any]] = {}
"""Name -> class, in the order of their names."""


def forget_loss(name: str, *, formula: str, source: str) -> Callable[[type[Any]], type[Any]]:
    """Register a method.

    Args:
        name: What `--loss` calls it.
        formula: Plain text, with s_t = log p_ref(y_t) - log p(y_t).
        source: Paper and equation.

    Raises:
        ValueError: The name is taken (by another class: a cell of a notebook may run again), `needs` holds a word that
            is unknown here, or `columns` one that the log has.
    """

    def register(method: type[Any]) -> type[Any]:
        unknown = set(method.needs) - set(NEEDS)
        if name in FORGET_LOSSES and not is_again(FORGET_LOSSES[name], method):
            raise ValueError(f"forget loss {name}: is taken")
        if unknown:
            raise ValueError(f"forget loss {name}: needs {', '.join(sorted(unknown))}; there are {', '.join(NEEDS)}")
        method.name, method.formula, method.source = name, formula, source
        method.columns = getattr(method, "columns", ())
        if taken := {*LOGGED} & {*method.columns}:
            raise ValueError(f"forget loss {name}: columns that the log has already: {taken}")
        FORGET_LOSSES[name] = method
        return method

    return register


def make_forget_loss(name: str, args: str | Mapping[str, Any] = "") -> ForgetLoss:
    """The method of that name with its parameters.

    Args:
        name: A registered name.
        args: Its parameters: a mapping, or text such as `beta=0.5,level=sequence`.

    Raises:
        ConfigError: No such method or parameter, or a value that it cannot take.
    """
    if name not in FORGET_LOSSES:
        raise ConfigError(f"--loss {name}: unknown; known are {', '.join(FORGET_LOSSES)}")
    method = FORGET_LOSSES[name]
    kinds = get_type_hints(method)
    known = [field.name for field in dataclasses.fields(method)]
    values = {}
    for key, value in (_parse(args) if isinstance(args, str) else args).items():
        if key not in known:
            raise ConfigError(f"--loss-args {key}: {name} has no such parameter; it has {', '.join(known) or 'none'}")
        values[key] = _converted(key, value, kinds[key])
    loss: ForgetLoss = method(**values)
    return loss


def check_args(allowed: Range, **values: float) -> None:
    """Check that parameters of a method lie in a range (`config.checks`).

    Raises:
        ConfigError: One does not; the message names it.
    """
    for name, value in values.items():
        if not allowed.holds(value):
            raise ConfigError(f"--loss-args {name}={value}: {allowed.rule}")


def _parse(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value) or key in found:
            raise ConfigError(f"--loss-args {text}: write each parameter once, as name=value,name=value")
        found[key] = value
    return found


def _converted(key: str, value: Any, kind: Any) -> Any:
    """A value as a parameter's type takes it."""
    if kind in (int, float):
        try:
            return kind(value)
        except (TypeError, ValueError):
            raise ConfigError(f"--loss-args {key}={value}: must be a number ({kind.__name__})") from None
    if kind is bool and not isinstance(value, bool):
        if str(value).lower() not in ("true", "false"):
            raise ConfigError(f"--loss-args {key}={value}: must be true or false")
        return str(value).lower() == "true"
    return value


for _module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")
FORGET_LOSSES = dict(sorted(FORGET_LOSSES.items()))
