"""Registering the same thing twice, as a cell of a notebook does that runs again."""

from typing import Any


def is_again(old: Any, new: Any) -> bool:
    """Whether a function or class is defined where another one was, under the same name: a newer state of it."""
    place, other = ((getattr(own, "__module__", None), getattr(own, "__qualname__", None)) for own in (old, new))
    return place == other and None not in place
