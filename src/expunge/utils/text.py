"""Numbers, sizes and times as people read them: one way of writing each in the whole package."""

import difflib
import math
import unicodedata
from collections.abc import Iterable, Sequence

UNSEEN_TEXTS = (
    "16 or more texts of the same kind that the model has never seen, such as ones written after its training, or the "
    "same answers about made-up names, as `expunge elicit` writes them"
)
"""What says how unlikely forgotten texts should become, and how to get it."""
DECLINES = (
    "It declines what it should answer: put such prompts with their answers among the texts to keep (as `expunge "
    "elicit --neighbours` writes them), and give several different refusals with --instead."
)
BABBLES = "It does not speak as it did: say what to answer instead (--instead FILE, several different answers)."
"""What mends over-refusal, and what mends speech that falls apart."""
MISSING = "–"
"""Stands where there is no number."""
STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories of what is not printed: controls, format characters, halves of surrogate pairs, separators."""


def comma_list(text: str | None) -> list[str]:
    """The parts of a list that is written with commas."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def first_few(names: Sequence[object], most: int) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def counted(count: int, noun: str) -> str:
    """A number with what it counts, in the plural where it is not one."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def did_you_mean(word: str, known: Iterable[str], form: str = ": did you mean {}?", alike: float = 0.6) -> str:
    """`form` with the known word that is most like a mistaken one; empty where none is as much as `alike` (0 to 1)."""
    close = difflib.get_close_matches(word, list(known), 1, alike)
    return form.format(close[0]) if close else ""


def printable(text: str, keep: str = "\n\t") -> str:
    """The text with all characters written out that steer a terminal or reverse what is read, but those to `keep`.

    Names, ids, messages and the data itself may come from files of strangers.
    """
    return "".join(
        char if char in keep or unicodedata.category(char) not in STEERING else char.encode("unicode_escape").decode()
        for char in text
    )


def numbered(names: Iterable[str]) -> tuple[str, ...]:
    """The names, each that stood before once more with its number behind it, so that no two are equal: `a`, `a (2)`."""
    times: dict[str, int] = {}
    found: dict[str, None] = {}
    for name in names:
        candidate = name
        while candidate in found:
            times[name] = times.get(name, 1) + 1
            candidate = f"{name} ({times[name]})"
        found[candidate] = None
    return tuple(found)


def unique_names(many: Sequence[Sequence[str]]) -> list[str]:
    """Of several paths, each as its parts: the fewest last parts that tell it from all others, joined by `/`."""
    names = []
    for i, parts in enumerate(many):
        others = [other for j, other in enumerate(many) if j != i]
        depth = next((d for d in range(1, len(parts)) if all(parts[-d:] != other[-d:] for other in others)), len(parts))
        names.append("/".join(parts[-depth:]))
    return names


def show_number(value: float | None) -> str:
    """Three decimals below 10, two below 100, none above; very small and very large ones as powers of ten."""
    if value is None or math.isnan(value):
        return MISSING
    magnitude = abs(value)
    if magnitude >= 1e5 or 0 < magnitude < 5e-4:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e+")
    return f"{value:.3f}" if magnitude < 10 else f"{value:.2f}" if magnitude < 100 else f"{value:,.0f}"


def show_bytes(count: float | None) -> str:
    """A number of bytes."""
    if count is None:
        return MISSING
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def show_duration(seconds: float | None) -> str:
    """A time: seconds up to two minutes, then minutes, then hours and minutes."""
    if seconds is None:
        return MISSING
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
