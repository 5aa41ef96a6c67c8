"""A number with its 95 % interval: the one type from the statistics to the results file and back."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from expunge.errors import DataError
from expunge.utils.coarse import TELLING, few, power_of_two

DIRECTIONS = ("higher", "lower", "target")
NAN = math.nan
ROUNDED = "rounded to a power of two"
"""How the reason of a number begins that is so."""
WITHHELD = f"one side has fewer than {TELLING} texts: how these compare with others gives short secrets away"
"""Why there is no number that compares two sides."""
ONE_TEXT = "one side has a single text or document, so how far it can be trusted is not known"
"""Why such a number has no interval."""


@dataclass(frozen=True)
class Estimate:
    """A measured number, how sure it is, and how to read it.

    Attributes:
        value: The number; NaN where nothing was measured.
        low: Lower end of the 95 % interval; NaN where it cannot be known.
        high: Upper end.
        n: Rows that the number rests on; None where a file does not say.
        reason: Why the value or the interval is missing; never empty where one is, of what this version measures.
        direction: Which values are better, `higher`, `lower` or those near the `target`; None where neither are.
        target: The value to come close to.
        family: What the number measures.
        source: Paper or repository that it comes from.
        reference: The same of a model that never saw the forget set; NaN without one.
        difference: The paired difference from that model, where rows can be paired.
        runs: Runs that are pooled in it.
        std: Standard deviation over runs; NaN of one run.
        members: Of a number that compares two sides, rows of the one that was trained on; None where it is not known.
        nonmembers: Rows of the other side.
        stopped: Rows whose answers were stopped before they could hold what is looked for.
    """

    value: float
    low: float = NAN
    high: float = NAN
    n: int | None = 0
    reason: str = ""
    direction: str | None = None
    target: float | None = None
    family: str = ""
    source: str = ""
    reference: float = NAN
    difference: "Estimate | None" = None
    runs: int = 1
    std: float = NAN
    members: int | None = None
    nonmembers: int | None = None
    stopped: int = 0

    @property
    def known(self) -> bool:
        """Whether there is a number."""
        return not math.isnan(self.value)

    @property
    def bounded(self) -> bool:
        """Whether there is an interval."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    @property
    def differs(self) -> bool:
        """Whether the interval of the paired difference from the reference leaves out 0."""
        return self.difference is not None and (self.difference.low > 0 or self.difference.high < 0)

    def read_as(self, direction: str | None, family: str, source: str, target: float | None = None) -> "Estimate":
        """The same number with how to read it."""
        return replace(self, direction=direction, family=family, source=source, target=target)

    def coarse(self) -> "Estimate":
        """The number as a power of two where it rests on so few texts that it gives short secrets in them away.

        Whoever has the model and all of a text but a telephone number can try all numbers.
        """
        return self if self.n is None or self.n >= TELLING else self.rounded()

    def rounded(self) -> "Estimate":
        """The number as a power of two, and why."""
        value, low, high = map(power_of_two, (self.value, self.low, self.high))
        why = f"{ROUNDED}: of fewer than {TELLING} texts, exact numbers give short secrets away"
        return replace(self, value=value, low=low, high=high, reason="; ".join(filter(None, (self.reason, why))))

    def withheld(self, members: int, nonmembers: int) -> "Estimate":
        """A number that compares two sides, without its value where one of them has few texts: the place of a text
        among many others has no coarse form.
        """
        if not few({"members": members, "nonmembers": nonmembers}):
            return self
        return replace(self, value=NAN, low=NAN, high=NAN, reason=WITHHELD)

    def as_entry(self) -> dict[str, Any]:
        """The entry of a results file; null stands for NaN."""
        entry: dict[str, Any] = {**self.ends(), "n": self.n, "direction": self.direction}
        if self.members is not None and self.nonmembers is not None:
            entry |= {"members": self.members, "nonmembers": self.nonmembers}
        if self.stopped:
            entry["stopped"] = self.stopped
        if self.target is not None:
            entry["target"] = self.target
        entry |= {"source": self.source, "family": self.family}
        if self.reason:
            entry["reason"] = self.reason
        if not math.isnan(self.reference):
            entry["reference"] = self.reference
        if self.difference is not None:
            reason = {"reason": self.difference.reason} if self.difference.reason else {}
            entry["difference"] = {**self.difference.ends(), **reason}
        return entry

    def ends(self) -> dict[str, float | None]:
        """Value, low and high; None stands for NaN."""
        ends = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if math.isnan(number) else number for name, number in ends.items()}

    @classmethod
    def from_entry(cls, where: str, entry: Any) -> "Estimate":
        """Read an entry of a results file; `where` names file and metric, for messages.

        Raises:
            DataError: It does not have the form that results files promise.
        """
        if not isinstance(entry, dict):
            raise DataError(f"{where}: must be an object with value, low, high and n")
        if "value" not in entry:
            raise DataError(f"{where}: field value is missing")
        direction, target = entry.get("direction"), _number(where, "target", entry)
        if direction is not None and direction not in DIRECTIONS:
            raise DataError(f"{where}: direction must be one of {', '.join(DIRECTIONS)}")
        if direction == "target" and math.isnan(target):
            raise DataError(f"{where}: has the direction target, and no target")
        low, high = (_number(where, name, entry) for name in ("low", "high"))
        if math.isnan(low) or math.isnan(high):
            low = high = NAN
        elif low > high:
            raise DataError(f"{where}: low is larger than high")
        rows, difference = _number(where, "n", entry), entry.get("difference")
        return cls(
            _number(where, "value", entry),
            low,
            high,
            None if math.isnan(rows) else int(rows),
            str(entry.get("reason") or ""),
            direction,
            None if math.isnan(target) else target,
            str(entry.get("family") or ""),
            str(entry.get("source") or ""),
            _number(where, "reference", entry),
            cls.from_entry(f"{where}: difference", difference) if isinstance(difference, Mapping) else None,
            members=_side(where, "members", entry),
            nonmembers=_side(where, "nonmembers", entry),
            stopped=_side(where, "stopped", entry) or 0,
        )


def _side(where: str, name: str, entry: Mapping[str, Any]) -> int | None:
    count = _number(where, name, entry)
    if math.isnan(count):
        return None
    if count < 1 or not count.is_integer():
        raise DataError(f"{where}: field {name} must be a whole number of rows, at least 1, or null")
    return int(count)


def _number(where: str, name: str, entry: Mapping[str, Any]) -> float:
    value = entry.get(name)
    if value is None:
        return NAN
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{where}: field {name} must be a finite number or null")
    return float(value)
