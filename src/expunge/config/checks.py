"""Checks that all settings share."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
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
SHARE = Range("is a share, at least 0 and below 1", lambda value: 0 <= value < 1)
SEED = Range("must lie between 0 and 2^32 - 1", lambda value: 0 <= value < 2**32)


class Plain:
    """Settings whose values are Python's own: what is assigned as one number of numpy or torch becomes one."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value.item() if getattr(value, "ndim", None) == 0 else value)

    def validate(self) -> None:
        """Check every type; nothing is loaded.

        Raises:
            ConfigError: The first setting that cannot be used, named by its flag.
        """
        check_types(self)


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
    for name, hint in get_type_hints(type(config)).items():
        value, kinds = getattr(config, name), get_args(hint) if NoneType in get_args(hint) else (hint,)
        if not any(_is(value, kind) for kind in kinds):
            words = [_word(kind) for kind in kinds if kind is not NoneType]
            quotes = ": put it in quotes" if WORDS[str] in words and isinstance(value, int | float) else ""
            raise ConfigError(f"{flag(name)} {value!r}: must be {' or '.join(words)}{quotes}")


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a type; whole numbers are numbers, and truth values are none."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is(item, *get_args(kind)) for item in value)
    return isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))


def _word(kind: Any) -> str:
    """What a message calls a type."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    return WORDS[get_args(kind)[0] if get_origin(kind) is list else kind]
