"""Checks that all settings share."""

from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin, get_type_hints

from expunge.errors import ConfigError

Check = tuple[bool, str]
"""Whether something holds, and the message where it does not."""


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
        if get_origin(hints[name]) is Literal:
            fits = value in kinds
        else:
            literals = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
            types = tuple(kind for kind in kinds if isinstance(kind, type))
            number = isinstance(value, int) and not isinstance(value, bool) and float in types
            fits = value in literals or number or (isinstance(value, types) and (bool in types or value is not True))
        if not fits:
            expected = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
            raise ConfigError(f"--{name.replace('_', '-')} {value!r}: must be {expected}")


def names(text: str | None) -> list[str]:
    """The parts of a list that is written with commas."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]
