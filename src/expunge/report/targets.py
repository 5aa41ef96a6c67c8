"""What a number of the verdict is judged against: the untouched model's value, a target, and tests."""

import math
from collections.abc import Iterable, Iterator
from statistics import NormalDist

from scipy.special import bdtrc

from expunge.data.holdout import FEWEST
from expunge.evaluation.results import COMPARED
from expunge.report.answers import CHANCE, NEVER_SEEN, NONE, ORIGIN, PLAIN, RETRAINED
from expunge.report.run_data import RunData
from expunge.report.scores import CHANGE, Score, number, unseen

TWO_SIDED = NormalDist().inv_cdf(0.975)
"""Standard deviations from the middle to either end of a 95 % interval."""
FEWEST_OF_TASK = 5
"""Fewest rows by which a task is judged by itself."""
FEWEST_KEPT = 10
"""That none of fewer texts to keep is lost shows little; that some are counts."""
UNKNOWN = "no value of the untouched model"
WITH_UNSEEN = ("semeval", "lume", "muse")
"""Benchmarks that bring texts like those to forget that the model has never seen."""


def whole(scores: dict[str, Score]) -> list[Score]:
    """The scores over all tasks; of paraphrased questions whether the fact is said."""
    return [score for score in scores.values() if not score.task or score.key == "forget/key_fact/paraphrased"]


def tasks_of(scores: dict[str, Score]) -> list[Score]:
    """Counts of rows of one task each, of those with rows enough."""
    return [
        score
        for score in scores.values()
        if score.task not in ("", "paraphrased", COMPARED)
        and score.name.startswith(tuple(PLAIN))
        and (score.n or 0) >= FEWEST_OF_TASK
    ]


def widened(numbers: int) -> float:
    """How many times as long an end of a 95 % interval is that holds for as many numbers together (Bonferroni)."""
    return NormalDist().inv_cdf(1 - 0.025 / numbers) / TWO_SIDED


def with_targets(run: RunData, scores: dict[str, Score]) -> Iterator[tuple[Score, float | None, float | None, str]]:
    """Each score over all tasks, the untouched model's value, the target, and what that is."""
    for score in whole(scores):
        yield score, before_of(run, score), *target_of(run, score)


def before_of(run: RunData, score: Score) -> float | None:
    """The untouched model's value: what is left when the paired change from it, on the same rows, is taken off, else
    that of its own results.
    """
    change = run.scores.get("after", {}).get(f"{score.key}{CHANGE}")
    if change and change.known:
        return score.value - change.value
    earlier = run.scores.get("before", {}).get(score.key)
    return earlier.value if earlier and earlier.known else None


def change_of(run: RunData, score: Score) -> tuple[float | None, float | None]:
    """Ends of the 95 % interval of the paired change from the untouched model; None where they are not known."""
    change = run.scores.get("after", {}).get(f"{score.key}{CHANGE}")
    if change and change.bounded:
        return change.low, change.high
    paired = (run.results.get("after", {}).get("before") or {}).get(score.key, {})
    return number(paired.get("low")), number(paired.get("high"))


def may_be_none(run: RunData, score: Score, fewest: int) -> bool:
    """Whether a loss may be none: its paired change reaches 0, or no interval of less than `fewest` rows is known."""
    high = change_of(run, score)[1]
    return high >= 0 if high is not None else not score.bounded and (score.n or fewest) < fewest


def target_of(run: RunData, score: Score) -> tuple[float | None, str]:
    """What a model that never saw the texts would get, as well as is known, and what that number is.

    Of models that were retrained, unseen texts come closest, and the checkpoint from before can be far off.
    """
    known = run.scores.get("retrained", {}).get(score.key), ORIGIN if run.reference == "origin" else RETRAINED
    never_seen = unseen_of(run, score) if score.target is None and score.set == "forget" else None, NEVER_SEEN
    for found, whose in (never_seen, known) if known[1] == ORIGIN else (known, never_seen):
        if found and found.known:
            return found.value, whose
    if score.target is not None:
        return score.target, CHANCE
    return (0.0, NONE) if score.name.startswith(tuple(PLAIN)) else (None, "")


def unseen_of(run: RunData, score: Score) -> Score | None:
    """The same metric of unseen texts: of the score's task where they are enough of it, else of all."""
    return next(filter(None, both_unseen(run, score)), None)


def both_unseen(run: RunData, score: Score) -> list[Score | None]:
    """The same metric of unseen texts, of the score's task where they are `FEWEST` and more, and of all."""
    after = run.scores.get("after", {})
    return [unseen(after, f"{score.name}/{score.task}", FEWEST) if score.task else None, unseen(after, score.name)]


def by_chance(run: RunData, score: Score, whose: str) -> float:
    """How far the untouched model's value can be from that of unseen texts by both intervals; 0 of other targets.

    A forget set that was never known is as well said as other texts are.
    """
    if whose != NEVER_SEEN:
        return 0.0
    pair = run.scores.get("before", {}).get(score.key, score), unseen_of(run, score)
    return reach(pair)


def reach(sides: Iterable[Score | None]) -> float:
    """How far several numbers can be from each other by the intervals that are known, half of each."""
    return math.hypot(*((side.high - side.low) / 2 for side in sides if side and side.bounded))


def by_guessing(score: Score, chance: float) -> float:
    """Probability that as many of the rows as are said, or more, would be guessed where each is with some chance."""
    rows = score.n or 0
    return float(bdtrc(round(score.value * rows) - 1, rows, chance))


def tests_of(run: RunData) -> dict[str, float]:
    """P of the tests against a reference model."""
    tests = run.compared.get("indistinguishable", {})
    return {name: p for name, p in tests.items() if p is not None}


def unseen_given(run: RunData) -> bool:
    """Whether the run had texts that the model has never seen: the user's, those that steered it, or a benchmark's."""
    if run.manifest.get("rows", {}).get("holdout") or run.calibration.get("selection_hmac"):
        return True
    after = run.scores.get("after")
    attacked = after is None or any(score.family == "membership" and score.known for score in after.values())
    return attacked and run.settings.get("benchmark") in WITH_UNSEEN
