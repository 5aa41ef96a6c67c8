"""Is the rest kept?"""

import math
from collections.abc import Sequence
from dataclasses import replace

from expunge.config.criteria import Criteria
from expunge.report.answering import doubted, unlike, with_mend
from expunge.report.answers import TO_SCORE, UNTOUCHED, Answer, Number, answered, judged, shown
from expunge.report.losses import MARGIN, drift_of, exact_losses, texts_of
from expunge.report.own_texts import OTHER, TRAINED, kept_texts
from expunge.report.run_data import RunData
from expunge.report.scores import Score, kept
from expunge.report.targets import FEWEST_KEPT, UNKNOWN, before_of, change_of, may_be_none, unseen_given, whole, widened
from expunge.utils.text import show_number

KEPT = "Is the rest kept?"
RETAIN = "retain"
"""The set of texts to keep that a run trains on, where results are of its texts."""
ON_TRAINED = "Measured on texts that the run trained on to keep them: others may have suffered more."
ON_OTHERS = "Measured on other texts to keep than the run's own"
TO_MEASURE_OWN = (
    "Measure the run's own texts to keep (`expunge evaluate --run RUN --overwrite`, without --retain); others are "
    "given beside them (--test FILE)."
)
FEWEST_ALL, ENOUGH_GIVEN = 38, 48
"""Rows, all of which were kept, that leave out a loss of `MARGIN` (95 %, each by itself), which is how those of one
document and a change that is not known are judged, too; as many texts that are given, a fifth of which is set apart.
"""
KNOWN = 0.5
"""Of a score that was lower the margin is that of this one: 15 of 1,000 texts that are said leave out no relative loss.
"""
TO_KEEP = "Give texts to keep: `expunge evaluate --run RUN --retain FILE --overwrite`."
TO_SHOW = (
    f"So few texts to keep cannot show that less than a tenth was lost: {ENOUGH_GIVEN} can where all are known and "
    f"kept, {FEWEST_ALL} with --retain-test 0."
)


def rest_kept(run: RunData, criteria: Criteria) -> Answer:
    """Whether the rest is still known, and texts that nobody mentioned are as likely as before."""
    margin = max(MARGIN, 1 - criteria.min_retain)
    rule = (
        f"Yes when every score of the rest has at least {criteria.min_retain:.0%} of its value before (fewer than "
        f"{FEWEST_KEPT} texts, or so few that the interval of the change reaches beyond a loss of {margin:.0%}, and "
        "those trained on where others were not, count only where they are lost; of the few, where as much as a whole "
        "text seems lost; a loss is unclear where the interval of the change reaches 0), no task of "
        f"{FEWEST_KEPT} texts and more has less by a change whose interval, widened for as many scores, leaves out 0, "
        f"and the loss of texts that the model has never seen rose by at most {criteria.max_drift:.0%}, "
        f"and its interval to no more than {max(MARGIN, criteria.max_drift):.0%}."
    )
    rest, measured = kept(run.scores.get("after", {})), kept_texts(run)
    scores = whole(rest)
    numbers, short = _whole_sets(run, criteria, scores, margin)
    numbers = [*_lost_tasks(run, criteria, rest), *numbers]
    scored = any(number.state != "shown" for number in numbers)
    side = "test" if exact_losses(run, "test") else "retain"
    drift, pair = drift_of(run, criteria), exact_losses(run, side)
    if not scored and pair:
        share, bound = math.exp(min(0.0, pair[0] - pair[1])), criteria.retained()
        known = texts_of(run, side, FEWEST_KEPT) >= FEWEST_KEPT  # of fewer no interval tells whether it is chance
        state = "good" if not bound.violation(share) else "bad" if known else "unclear"
        says = f"the loss of the texts to keep went from {show_number(pair[0])} to {show_number(pair[1])}"
        numbers.append(
            Number(
                f"{side}/loss", says, pair[1], before=pair[0], target=pair[0], target_from=UNTOUCHED,
                limit=f"tokens at least {criteria.min_retain:.0%} as likely as before",
                state=state, excess=bound.excess(share),
            )
        )  # fmt: skip
    numbers += drift
    need = TO_KEEP if "after" in run.scores and not scores else TO_SCORE
    if all(number.state == "shown" for number in numbers):
        return Answer(KEPT, "not measured", "not measured", "no scores of the rest", rule, need, tuple(numbers))
    flag = "" if unseen_given(run) else " (--holdout FILE)"
    notes = [] if drift else [f"No texts that the model has never seen were measured{flag}."]
    sets = {number.key.split("/")[0] for number in numbers if number.state != "shown" and number not in drift}
    if sets and sets <= _trained(run):
        notes.append(ON_TRAINED)
        if side == "test" and pair:
            moved = f"went from {show_number(pair[0])} to {show_number(pair[1])}"
            notes.append(f"The loss of the {texts_of(run, side, 0):,} that it did not train on {moved}.")
    others, owned = OTHER in measured.values(), {*measured.values()} != {OTHER}
    if others:
        notes.append(f"{ON_OTHERS}{', too' * owned}.")
    answer = answered(KEPT, ("no", "yes"), numbers, rule, notes)
    if short and answer.state == "unclear":
        answer = replace(answer, need=TO_SHOW)
    answer = with_mend(answer)
    if scored and not owned and answer.state != "bad":
        says = f"{answer.says}, but these are not the run's own texts to keep"
        answer = replace(answer, answer="unclear", state="unclear", says=says, need=TO_MEASURE_OWN)
    few = max((number.n or FEWEST_KEPT for number in answer.numbers if number.state == "bad"), default=FEWEST_KEPT)
    if few < FEWEST_KEPT:
        answer = replace(answer, says=f"{answer.says}; what is bad is of {few} text{'s' * (few > 1)} only")
    if scored or answer.state == "bad":
        return answer
    says = f"{answer.says}, which alone proves nothing"
    return replace(answer, answer="not measured", state="not measured", says=says, need=need)


def _trained(run: RunData) -> set[str]:
    """Sets of what was measured that the run has trained on, as far as that is known."""
    found = {RETAIN: TRAINED} if run.manifest.get("rows", {RETAIN: 1}).get(RETAIN) else {}
    return {name for name, what in (found | kept_texts(run)).items() if what == TRAINED}


def _whole_sets(run: RunData, criteria: Criteria, scores: Sequence[Score], margin: float) -> tuple[list[Number], bool]:
    """Every score over all tasks, and whether one is kept on too few texts to show it."""
    numbers, short, trained = [], False, _trained(run)

    def sure(score: Score) -> bool:
        before, least = before_of(run, score) or 0.0, change_of(run, score)[0]
        if least is not None and least >= -margin * max(before, KNOWN):
            return True
        return (least is None or score.value == before == 1) and (score.n or FEWEST_ALL) >= FEWEST_ALL

    def telling(score: Score) -> bool:
        return (score.n is None or score.n >= FEWEST_KEPT) and sure(score)

    alike = [score for score in scores if not unlike(run, score)]
    enough = {score.set for score in alike if before_of(run, score) and telling(score)}
    enough -= {score.set for score in alike if (before_of(run, score) or 0.0) >= KNOWN and not sure(score)}
    for score in scores:
        before = before_of(run, score)
        if before is not None and (why := unlike(run, score)):
            numbers.append(doubted(shown(score, before, before, UNTOUCHED, ""), why))
            continue
        if not before:
            why = UNKNOWN if before is None else "nothing to lose: it was 0 before"
            numbers.append(shown(score, before, None, "", why))
            continue
        found = judged(score, before, criteria.retained(before), UNTOUCHED)
        weak = (
            TRAINED
            if score.set in trained and enough & {RETAIN, "test"} - trained
            else "few texts" * (not telling(score))
        )
        lost = not telling(score) and before - score.value >= 1 / (score.n or 1)  # as much as a whole text
        if weak and enough and found.state != "bad" and not lost:
            found = replace(found, state="shown", limit=f"{weak}: only a loss counts")
        elif weak and found.state == "good":
            found, short = replace(found, state="unclear"), True
        elif found.state == "bad" and may_be_none(run, score, FEWEST_KEPT):
            found = replace(found, state="unclear", limit=f"{found.limit}; that can be chance")
        numbers.append(found)
    return numbers, short


def _lost_tasks(run: RunData, criteria: Criteria, scores: dict[str, Score]) -> list[Number]:
    """Scores of single tasks that have fallen, which those of the others can hide in the mean over all.

    Only a loss counts: below the criterion, by a paired change whose interval, widened for as many scores as are looked
    at (Bonferroni), leaves out 0. One that may be chance, or whose change is not known, is not told.
    """
    looked_at = []
    for score in scores.values():
        before, (_, most) = before_of(run, score), change_of(run, score)
        if score.task and before and not unlike(run, score) and most is not None and (score.n or 0) >= FEWEST_KEPT:
            looked_at.append((score, before, most))
    lost = []
    for score, before, most in looked_at:
        bound, change = criteria.retained(before), score.value - before
        if bound.violation(score.value) and change + widened(len(looked_at)) * (most - change) < 0:
            number = shown(score, before, before, UNTOUCHED, f"one task: at least {show_number(bound.least)}")
            lost.append(replace(number, state="bad", excess=bound.excess(score.value)))
    return lost
