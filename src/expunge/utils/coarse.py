"""Numbers about so few texts that exact ones would give short secrets in them away, made coarse.

Whoever has the model and all of a text but a telephone number can try all numbers, and look which one has the loss that
a file tells.
"""

import math
from collections.abc import Mapping
from typing import Any

TELLING = 4
"""Fewest texts of which files hold exact numbers."""
ROUNDING = math.sqrt(2)
"""Most that a number is changed by, as a factor, when it is rounded to a power of two."""
HALF = 0.5
"""Step of losses in nats: a few digits that nobody knows move the mean loss of a text by less."""
TOKENS = 16
"""Step of counts of tokens: numbers of as many digits have a token more or less."""


def power_of_two(number: float) -> float:
    """The power of two that is next to a number, with its sign."""
    return math.copysign(2.0 ** round(math.log2(abs(number))), number) if number and math.isfinite(number) else number


def few(counts: Mapping[str, int]) -> bool:
    """Whether one of the sets that are there has fewer texts than `TELLING`."""
    return any(0 < count < TELLING for count in counts.values())


def telling_parts(counts: Mapping[str, int]) -> set[str]:
    """Parts of a whole whose numbers must not be exact beside the whole's: those of fewer than `TELLING` texts, and the
    next smallest where these leave so few that all the others would give theirs away.

    Args:
        counts: Part -> texts; what belongs to no part stands under "" and is never told.
    """
    found = {""} & counts.keys()
    for name in sorted(counts.keys() - found, key=lambda part: (counts[part], part)):
        if few({name: counts[name], "rest": sum(counts[part] for part in found)}):
            found.add(name)
    return found


def nats(number: float | None) -> float | None:
    """A loss to half a nat."""
    return None if number is None or not math.isfinite(number) else HALF * round(number / HALF)


def tokens(count: int) -> int:
    """A count of tokens, up to the next sixteen."""
    return TOKENS * math.ceil(count / TOKENS)


def losses(found: Mapping[str, Mapping[str, float | None]], texts: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Losses before and after of each set, to half a nat where the set has few texts."""
    return {
        name: {key: nats(value) if few({name: texts[name]}) else value for key, value in pair.items()}
        for name, pair in found.items()
    }


def line(values: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the log of a run with few texts: everything that follows from them to halves, tokens to sixteens."""
    exact = ("step", "epoch", "learning_rate")
    entry: dict[str, Any] = {}
    for key, value in values.items():
        entry[key] = nats(value) if isinstance(value, float) and key not in exact else value
        if key == "tokens":
            entry[key] = tokens(value)
    return entry
