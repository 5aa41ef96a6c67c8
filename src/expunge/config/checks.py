"""Checks that all settings share."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from expunge.errors import ConfigError

Check = tuple[bool, str]
"""Whether something holds, and the message where it does not."""
SAME_ORIGIN = "--origin {}: is --model itself: give the checkpoint from before it learned the texts"


WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
"""Type of a setting -> what a message calls it."""


def flag(name: str) -> str:
    """How a setting is written on the command line."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class Range:
    """Which numbers a setting takes.

    Attributes:
        rule: The end of the message about one that is outside.
        holds: Whether a number is inside; not-a-number never is.
    """

    rule: str
    holds: Callable[[float], bool]

    def of(self, config: Any, *settings: str) -> Iterator[Check]:
        """The checks of some settings; one that is None is not set."""
        for name in settings:
            value = getattr(config, name)
            yield value is None or self.holds(value), f"{flag(name)} {value}: {self.rule}"


POSITIVE = Range("must be at least 1", lambda value: value >= 1)
COUNT = Range("must be 0 or more", lambda value: value >= 0)
WEIGHT = Range("must be finite, 0 or more", lambda value: 0 <= value < math.inf)
ABOVE_ZERO = Range("must be finite and above 0", lambda value: 0 < value < math.inf)
UNIT = Range("must lie between 0 and 1", lambda value: 0 <= value <= 1)
RATIO = Range("must lie above 0 and at most at 1,000", lambda value: 0 < value <= 1000)
SHARE = Range("is a share, at least 0 and below 1", lambda value: 0 <= value < 1)
SEED = Range("must lie between 0 and 2^32 - 1", lambda value: 0 <= value < 2**32)


class Plain:
    """Settings whose values are Python's own: what is assigned as one number of numpy or torch becomes one."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value.item() if getattr(value, "ndim", None) == 0 else value)


def exclusive(config: Any, *pairs: tuple[str, str]) -> Iterator[Check]:
    """The checks of settings of which at most one of a pair can be given."""
    for one, other in pairs:
        both = getattr(config, one) and getattr(config, other)
        yield not both, f"{flag(one)} and {flag(other)} contradict each other: choose one"


def other_origin(config: Any) -> Check:
    """The check that the origin is not the folder of the model itself."""
    same = config.origin and Path(config.origin).resolve() == Path(config.model).resolve() and not config.revision
    return not same, SAME_ORIGIN.format(config.origin)


def first_failed(checks: Iterable[Check]) -> None:
    """Go through checks until one does not hold.

    Raises:
        ConfigError: With its message.
    """
    for holds, message in checks:
        if not holds:
            raise ConfigError(message)


def check_types(config: Any) -> None:
    """Check that every field of a config holds a value of its type.

    Raises:
        ConfigError: One does not; it is named by its flag.
    """
    hints = get_type_hints(type(config))
    for name, value in vars(config).items():
        if name not in hints:
            continue
        kinds = get_args(hints[name]) or (hints[name],)
        literals = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
        types = tuple(kind for kind in kinds if isinstance(kind, type))
        if get_origin(hints[name]) is Literal:
            fits = value in kinds
        elif get_origin(hints[name]) is list:
            fits = isinstance(value, list) and all(isinstance(own, types) for own in value)
        else:
            number = isinstance(value, int) and not isinstance(value, bool) and float in types
            fits = (
                value in literals
                or number
                or (isinstance(value, types) and (bool in types or not isinstance(value, bool)))
            )
        if not fits:
            choices = kinds if get_origin(hints[name]) is Literal else literals
            words = [WORDS[kind] for kind in types if kind in WORDS]
            expected = [f"one of {', '.join(map(str, choices))}"] if choices else []
            quotes = ": put it in quotes" if str in types and isinstance(value, int | float) else ""
            raise ConfigError(f"{flag(name)} {value!r}: must be {' or '.join(expected + words)}{quotes}")
