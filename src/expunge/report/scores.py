"""Results files as one list of scores: what was measured, which way is good, and the number with its interval."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from expunge.evaluation.estimate import NAN, Estimate
from expunge.evaluation.results import measured_metrics
from expunge.utils.text import show_number

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
    "rouge ([1l])": r"ROUGE-\1",
    "min k plus plus": "min-k++",
    "min k": "min-k",
    r"tpr at (\d+) fpr": r"TPR at \1% FPR",
}
UNSEEN = ("holdout", "nonmember")
"""Sets that the model has never seen."""
ARROWS = {"higher": "↑", "lower": "↓", "target": "→"}
SPEECH = ("repetition", "fluency", "refusal")
"""Metrics that say how the model speaks, not what it knows: the beginnings of their names."""
GENERAL = ("quiz", "mmlu")
"""Scores of general ability in the set `all`, where most others mix forgetting and keeping."""

EXPOSURE = "exposure"
"""The metric that is judged as an attack: its target is what a model that knows nothing gets, not the least."""
CHANGE = "_change"
"""Behind the name of a utility task: the paired change from the untouched model, which was run on it in the same go."""


@dataclass(frozen=True)
class Score(Estimate):
    """One number of a results file with its name.

    Attributes:
        key: `<set>/<metric>` or `<set>/<metric>/<task>`.
    """

    key: str = ""

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
        """The task; empty where the score is over all of them."""
        parts = self.key.split("/", 2)
        return parts[2] if len(parts) == 3 else ""

    @property
    def label(self) -> str:
        """What the page calls it."""
        words = spelled(self.name)
        if self.set == "membership":
            words = f"{words} attack" if not words.endswith(("AUC", "FPR")) else words
        elif self.set not in ("all", "utility"):
            words = f"{self.set.replace('_', ' ')}: {words}"
        return f"{words}, {self.task.replace('/', ', ')}" if self.task else words

    @property
    def text(self) -> str:
        """Value and interval, or why there is none."""
        if not self.known:
            return f"{show_number(None)} ({self.reason or 'not measured'})"
        if not self.bounded:
            return show_number(self.value)
        return f"{show_number(self.value)} (95% interval {show_number(self.low)} to {show_number(self.high)})"

    @property
    def of_reference(self) -> "Score":
        """The score of the reference model that this one names."""
        return replace(self, value=self.reference, low=NAN, high=NAN, n=None, reference=NAN, difference=None)


def number(value: Any) -> float | None:
    """A finite number as a float; None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def read_scores(results: Mapping[str, Any], path: str | Path = "results file") -> dict[str, Score]:
    """Key -> score of a results file of any benchmark.

    Raises:
        DataError: An entry does not have the form that results files promise.
    """
    scores = {}
    for key, found in measured_metrics(path, results).items():
        reason = found.reason or ("there are no rows of this kind" if found.n == 0 else "")
        scores[key] = Score(**vars(found) | {"key": key, "family": found.family or "official", "reason": reason})
    return scores


def knowledge(scores: Mapping[str, Score]) -> dict[str, Score]:
    """What says how much of the forget set is still known: lower is better."""
    return {
        key: score
        for key, score in scores.items()
        if score.set == "forget"
        and score.direction == "lower"
        and score.family in ("memorization", "text", "official")
        and not score.name.startswith(SPEECH)
        and score.name != EXPOSURE
        and score.known
    }


def unseen(scores: Mapping[str, Score], key: str, fewest: int = 0) -> Score | None:
    """A metric, or one task of it, of unseen texts, where it is known and of `fewest` texts or more."""
    found = (scores.get(f"{side}/{key}") for side in UNSEEN)
    return next((score for score in found if score and score.known and (score.n or fewest) >= fewest), None)


def kept(scores: Mapping[str, Score]) -> dict[str, Score]:
    """What says how much of the rest is still known: higher is better there, and not on texts to forget too; neither
    changes nor mixtures with forgetting.
    """
    always = {score.name for score in scores.values() if score.set == "forget" and score.direction == "higher"}
    return {
        key: score
        for key, score in scores.items()
        if score.direction == "higher"
        and score.name not in always
        and score.known
        and score.family != "membership"
        and not score.name.startswith(SPEECH)
        and not score.name.endswith(CHANGE)
        and score.set != "forget"
        and (score.set != "all" or score.family == "utility" or score.name in GENERAL)
    }


def speech(scores: Mapping[str, Score]) -> dict[str, Score]:
    """What says how well the model still speaks, whatever it is asked."""
    return {key: score for key, score in scores.items() if score.name.startswith(SPEECH) and score.known}


def spelled(name: str) -> str:
    """A metric's name as people write it."""
    words = name.replace("_", " ")
    for pattern, text in _SPELLED.items():
        words = re.sub(rf"\b{pattern}\b", text, words)
    return words.replace("ROUGE-l", "ROUGE-L")
