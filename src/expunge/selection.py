"""Which membership texts the strength of an adapter was chosen on, so that nothing is reported on them."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expunge.data.examples import Example
from expunge.errors import RunError

FILE = "calibration.json"


def example_hashes(examples: Sequence[Example]) -> list[str]:
    """What stands for texts where they must not be told: SHA-256 of each, however prompt and completion are joined."""
    texts = (f"{example.prompt}\n{example.completion}".strip() for example in examples)
    return [hashlib.sha256(text.encode()).hexdigest() for text in texts]


def selection_half(hashes: Sequence[str]) -> list[bool]:
    """Which of some texts are for selection: half of the different ones, the same whatever their order."""
    order = sorted(set(hashes))
    chosen = set(order[: len(order) // 2])
    return [own in chosen for own in hashes]


def read_calibration(folder: Path) -> dict[str, Any] | None:
    """The calibration of a run, or None.

    Raises:
        RunError: It cannot be read.
    """
    file = folder / FILE
    if not file.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if not (isinstance(content["trained_alpha"], int | float) and isinstance(content["selection_sha256"], list)):
            raise TypeError
        return content
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise RunError(f"{file}: not a calibration, it is damaged or from another version") from None


def without_selection(examples: Sequence[Example], calibration: dict[str, Any]) -> list[Example]:
    """The texts that a calibration did not look at."""
    left_out = set(calibration["selection_sha256"])
    return [own for own, mark in zip(examples, example_hashes(examples), strict=True) if mark not in left_out]
