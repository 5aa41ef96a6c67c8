"""Numbers of what a model says: whether the other model was asked alike, and whether the answers were long enough."""

from dataclasses import replace
from typing import Any

from expunge.report.answers import ORIGIN, PLAIN, RETRAINED, Answer, Number
from expunge.report.run_data import RunData
from expunge.report.scores import Score

ASKED, DRAWN = ("max_new_tokens", "prompt_format"), ("samples", "temperature")
"""Settings of an evaluation that every answer depends on, and those of answers that are drawn."""
OWN_LIMIT = "muse"
"""The benchmark whose answers are as long as it says."""
UNLIKE, STOPPED = "not asked alike", "stopped too early"
TO_ASK_ALIKE = (
    "Measure all models with the same settings (`expunge evaluate --run RUN --overwrite`; results of your own with the "
    "same --max-new-tokens, --samples and --temperature): what they say cannot be compared."
)
TO_ASK_LONGER = (
    "Give a larger --max-new-tokens (`expunge evaluate --run RUN --overwrite`): answers were stopped before they could "
    "hold what is looked for."
)


def unlike(run: RunData, score: Score, whose: str = "") -> str:
    """In what the answers behind a number were not given as those that it is compared with, the untouched model's and,
    where the target is `whose`, another model's; empty where they were, or it is no number of answers.
    """
    if score.family != "text" and not score.name.startswith(tuple(PLAIN)):
        return ""
    ours = _made(run, "after")
    names = [*ASKED, *(DRAWN if "_at_" in score.name else ())]
    for role in ("before", *(["retrained"] if whose.startswith((RETRAINED, ORIGIN)) else [])):
        theirs = _made(run, role)
        for name in names:
            if name in ours and name in theirs and ours[name] != theirs[name]:
                return f"{UNLIKE}: {name} {theirs[name]} {role}, {ours[name]} after"
    return ""


def unheard(score: Score | None) -> float:
    """The share of the rows whose answers were stopped before they could hold what is looked for."""
    return score.stopped / score.n if score and score.n else 0.0


def doubted(number: Number, why: str) -> Number:
    """A number as unclear, and why; as it is without a reason."""
    return replace(number, state="unclear", limit="; ".join(filter(None, (number.limit, why)))) if why else number


def with_mend(answer: Answer) -> Answer:
    """An answer that answers alone leave unclear, with what to do about it."""
    limits = [number.limit for number in answer.numbers if number.state == "unclear"]
    for what, need in ((UNLIKE, TO_ASK_ALIKE), (STOPPED, TO_ASK_LONGER)):
        if answer.state == "unclear" and any(what in limit for limit in limits):
            return replace(answer, need=need)
    return answer


def _made(run: RunData, role: str) -> dict[str, Any]:
    results = run.results.get(role, {})
    left_out = ("max_new_tokens",) if results.get("benchmark") == OWN_LIMIT else ()
    return {name: value for name, value in (results.get("settings") or {}).items() if name not in left_out}
