"""Results files as one list of readings: what was measured, which way is good, and the number with its interval."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from expunge.evaluation.estimate import Estimate
from expunge.evaluation.results import measured_metrics

FAMILIES = {
    "official": "Official scores",
    "memorization": "Memorization",
    "text": "What the model says",
    "membership": "Membership attacks",
    "utility": "Utility",
    "drift": "Losses of documents (nats per token)",
}
"""Family -> heading, in the order of the page; a family that is not here comes after these under its own name."""
_SPELLED = {
    "auc": "AUC",
    "nll": "NLL",
    "mmlu": "MMLU",
    "mia": "membership",
    "f1": "F1",
    "rouge ([1l])": lambda match: f"ROUGE-{match[1].upper()}",
    "min k plus plus": "min-k++",
    "min k": "min-k",
    r"tpr at (\d+) fpr": r"TPR at \1% FPR",
}
ARROWS = {"higher": "↑", "lower": "↓", "target": "→"}
GENERAL = ("quiz", "mmlu")
"""Scores of general ability in files that name no families."""
NOT_KNOWLEDGE = {"repetition", "fluency"}
"""Metrics of forget texts that say how the model speaks, not what it knows."""


@dataclass(frozen=True)
class Reading:
    """One number of a results file.

    Attributes:
        key: `<set>/<metric>` or `<set>/<metric>/<task>`.
        value: The number; None where nothing could be measured.
        low: Lower end of the 95 % interval; None where it is not known.
        high: Its upper end.
        n: Rows behind it.
        direction: `higher`, `lower` or `target`: which values are good; None where neither is.
        target: For direction `target`; None where only a reference could say.
        family: What it looks at; a key of `FAMILIES` as a rule.
        source: Paper or repository.
        reference: The value of the reference model, where the file names it.
        differs: Whether the paired interval of the difference from the reference leaves out 0.
    """

    key: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    direction: str | None = "higher"
    target: float | None = None
    family: str = "official"
    source: str = ""
    reference: float | None = None
    differs: bool = False

    @property
    def set(self) -> str:
        """`forget`, `retain`, `holdout`, ..."""
        return self.key.split("/", 1)[0]

    @property
    def name(self) -> str:
        """The metric without set and task."""
        return self.key.split("/", 2)[1] if "/" in self.key else self.key

    @property
    def task(self) -> str:
        """The task; empty where the reading is over all of them."""
        parts = self.key.split("/", 2)
        return parts[2] if len(parts) == 3 else ""

    @property
    def bounded(self) -> bool:
        """Whether there is an interval."""
        return self.low is not None and self.high is not None


def number(value: Any) -> float | None:
    """A finite number as a float; None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def readings(results: Mapping[str, Any], path: str | Path = "results file") -> dict[str, Reading]:
    """Key -> reading of a results file of any benchmark, with or without `metrics`.

    Raises:
        DataError: An entry does not have the form that results files promise.
    """
    entries = results.get("metrics") or {}
    found = {
        key: _reading(key, measured, entries.get(key, {})) for key, measured in measured_metrics(path, results).items()
    }
    for reading in _beside(results):
        found.setdefault(reading.key, reading)
    return found


def _reading(key: str, measured: Estimate, entry: Mapping[str, Any]) -> Reading:
    return Reading(
        key,
        number(measured.value),
        number(measured.low),
        number(measured.high),
        measured.n,
        measured.direction,
        measured.target,
        str(entry.get("family") or _family(key)),
        str(entry.get("source") or ""),
        number(entry.get("reference")),
        _excludes_zero(entry.get("difference")),
    )


def _excludes_zero(difference: Any) -> bool:
    if not isinstance(difference, Mapping):
        return False
    low, high = number(difference.get("low")), number(difference.get("high"))
    return low is not None and high is not None and (low > 0 or high < 0)


def _family(key: str) -> str:
    """The family of a number whose file names none."""
    split, _, name = key.partition("/")
    if name == "nll" and split != "forget":
        return "drift"
    return "membership" if split == "membership" else "utility" if name in GENERAL else "official"


def _beside(results: Mapping[str, Any]) -> list[Reading]:
    """Numbers that stand beside `metrics`: means over all tasks of the official scores, a quiz, losses of documents."""
    found = []
    overall = results.get("overall")
    for split, direction in (("forget", "lower"), ("retain", "higher")):
        means = overall.get(split) if isinstance(overall, Mapping) else None
        for name, metric in (("regurgitation", "rouge_l_recall"), ("knowledge", "exact_match")):
            if isinstance(means, Mapping) and (value := number(means.get(name))) is not None:
                found.append(Reading(f"{split}/{metric}", value, direction=direction))
    if (quiz := number(results.get("quiz"))) is not None:
        found.append(Reading("all/quiz", quiz, family="utility"))
    losses = results.get("mean_nll")
    for side in ("member", "nonmember"):
        loss = number(losses.get(side)) if isinstance(losses, Mapping) else None
        if loss is not None:
            found.append(Reading(f"{side}/nll", loss, direction=None, family="drift"))
    return found


def with_reference(after: Mapping[str, Reading], reference: Mapping[str, Reading]) -> dict[str, Reading]:
    """The readings of a reference model: its own file's, and those that the file of the unlearned model names."""
    named = {
        key: replace(reading, value=reading.reference, low=None, high=None, n=None, reference=None, differs=False)
        for key, reading in after.items()
        if reading.reference is not None
    }
    return {**named, **reference}


def knowledge(found: Mapping[str, Reading]) -> dict[str, Reading]:
    """What says how much of the forget set is still known: lower is better, and 0 is nothing."""
    return {
        key: reading
        for key, reading in found.items()
        if reading.set == "forget"
        and reading.direction == "lower"
        and reading.family in ("memorization", "text", "official")
        and reading.name not in NOT_KNOWLEDGE
        and reading.value is not None
    }


def kept(found: Mapping[str, Reading]) -> dict[str, Reading]:
    """What says how much of the rest is still known: higher is better; scores that mix it with forgetting are not."""
    return {
        key: reading
        for key, reading in found.items()
        if reading.direction == "higher"
        and reading.value is not None
        and reading.family != "membership"
        and reading.set != "forget"
        and (reading.set != "all" or reading.family == "utility" or reading.name in GENERAL)
    }


def label(reading: Reading) -> str:
    """How the page names a reading."""
    words = _spelled(reading.name)
    if reading.set == "membership":
        words = f"{words} attack" if not words.endswith(("AUC", "FPR")) else words
    elif reading.set not in ("all", "utility"):
        words = f"{reading.set.replace('_', ' ')}: {words}"
    return f"{words}, {reading.task.replace('/', ', ')}" if reading.task else words


def _spelled(name: str) -> str:
    words = name.replace("_", " ")
    for pattern, text in _SPELLED.items():
        words = re.sub(rf"\b{pattern}\b", text, words)
    return words
