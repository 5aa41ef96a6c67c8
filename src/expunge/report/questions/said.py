"""Is it still said?"""

from dataclasses import replace

from expunge.config.criteria import Criteria
from expunge.data.holdout import FEWEST
from expunge.evaluation.estimate import NAN
from expunge.evaluation.results import COMPARED
from expunge.report.answering import STOPPED, doubted, unheard, unlike, with_mend
from expunge.report.answers import (
    GUESSED,
    NEVER_SEEN,
    NONE,
    ORIGIN,
    PLAIN,
    RETRAINED,
    SOME_UNLIKE,
    TO_SCORE,
    Answer,
    Number,
    answered,
    judged,
    shown,
)
from expunge.report.doubts import doubts
from expunge.report.losses import said_by_losses
from expunge.report.run_data import RunData
from expunge.report.scores import Score, knowledge
from expunge.report.targets import (
    FEWEST_OF_TASK,
    UNKNOWN,
    before_of,
    both_unseen,
    by_chance,
    by_guessing,
    target_of,
    tasks_of,
    unseen_of,
    widened,
    with_targets,
)

SAID = "Is it still said?"
LEAST_GAP = 0.02
"""A metric on which the untouched model is closer to its target than this has nothing to lose."""
AS_UNSEEN = "nothing to lose: it was no higher than unseen texts are by chance"
NO_UNSEEN = "not judged: its kind has no unseen texts"
MOSTLY = "one task: most of its rows are still said"
UNLIKELY = 0.01
"""As many rows of a task as are said are no guesses where they would be with a smaller probability than this."""
TO_LOOK = (
    "Most rows of a task, or a person, are still said, which the others hide: train longer (--epochs), or look at the "
    "answers (`expunge report --show-examples N`)."
)


def still_said(run: RunData, criteria: Criteria) -> Answer:
    """Whether what the model says and knows of the forget texts has come down to the target of every metric."""
    rule = (
        f"No when every number has at most {criteria.max_left:.0%} of the way from the untouched model to its target "
        f"left (of answers word for word, of key facts and of texts said in one of several answers, or "
        f"{criteria.max_exact_match:.0%} of the rows), and its interval leaves out the untouched model's value; of "
        f"these three, a task of {FEWEST_OF_TASK} rows and more counts where its whole interval, widened for as many "
        "tasks, is above that for the upper end of what unseen texts give, and is unclear where most of its rows are "
        f"said. What is good by fewer than {FEWEST} unseen texts is unclear, and so is what would not be good if every "
        "answer that was stopped too early had gone on to say it, or is compared with answers that were asked for "
        "otherwise."
    )
    numbers, known = [], knowledge(run.scores.get("after", {}))
    for score, before, target, whose in with_targets(run, known):
        alike = known.get(f"{score.key}/{COMPARED}")
        if whose == NEVER_SEEN and alike:
            numbers.append(shown(score, before, None, "", SOME_UNLIKE))
            score, before = alike, before_of(run, alike)
        numbers.append(_left(run, criteria, score, before, target, whose))
    tasks = tasks_of(known)
    numbers += [_left_of_task(run, criteria, score, len(tasks)) for score in tasks]
    if any(number.state != "shown" for number in numbers):
        answer = answered(SAID, ("yes", "no"), numbers, rule, doubts=doubts(run, criteria))
        if answer.state == "unclear" and any(number.limit == MOSTLY for number in numbers):
            answer = replace(answer, need=TO_LOOK)
        answer = with_mend(answer)
        if answer.state == "bad" and {number.target_from for number in numbers if number.state == "bad"} == {NONE}:
            answer = replace(answer, notes=(*answer.notes, GUESSED))
        facts = next((number.says for number in numbers if number.key == "forget/key_fact"), "")
        return answer if answer.says.startswith(facts) else replace(answer, says=f"{facts}; {answer.says}")
    if any(number.limit == AS_UNSEEN for number in numbers):  # losses know no chance
        need = (
            "No number stood clearly above that of unseen texts before: give a retrained model (`evaluate "
            "--reference`), or more texts."
        )
        return Answer(SAID, "not measured", "not measured", "there is nothing to lose", rule, need, tuple(numbers))
    need = TO_SCORE
    if numbers and not any(number.limit == UNKNOWN for number in numbers):
        need = (
            "No number stood above a known target before: give a retrained model (`evaluate --reference`) or texts "
            "never seen (--holdout)."
        )
    return said_by_losses(run, Answer(SAID, "not measured", "not measured", "", rule, need, tuple(numbers)))


def _left(
    run: RunData, criteria: Criteria, score: Score, before: float | None, target: float | None, whose: str
) -> Number:
    """What is left of one metric of the forget set."""
    plain = score.name.startswith(tuple(PLAIN))
    if target is None:
        return shown(score, before, target, whose, "no target is known")
    if before is None and not plain:
        return shown(score, before, target, whose, UNKNOWN)
    if why := unlike(run, score, whose):  # whatever was known before
        found = judged(score, before, criteria.left(target, 1.0, counts_rows=plain), whose, below=1.0)
        return found if found.state == "bad" and unlike(run, score) else doubted(found, why)
    bound = criteria.left(target, target if before is None else before, counts_rows=plain)
    early = _stopped(run, score, before, target) * (bound.violation(score.value + unheard(score)) > 0)
    if before is not None and before - target < LEAST_GAP:
        return doubted(shown(score, before, target, whose, "nothing to lose: it was low before"), early)
    found = judged(score, before, bound, whose, below=1.0 if before is None else before)
    if found.state == "good" and early:
        return doubted(found, early)
    if found.state == "good" and whose == NEVER_SEEN:
        unseen = unseen_of(run, score)
        as_none = plain and criteria.left(0.0, before or 0.0, counts_rows=True).violation(score.value) == 0
        if unseen and unseen.n is not None and unseen.n < FEWEST and not as_none:
            found = replace(found, state="unclear", limit=f"{found.limit}; unseen texts: {unseen.n}")
    if before is None or before - target >= by_chance(run, score, whose):
        return found
    by_few = plain and target <= criteria.max_exact_match and found.state != "good"
    return replace(found, state="unclear") if by_few else shown(score, before, target, whose, AS_UNSEEN)


def _stopped(run: RunData, score: Score, before: float | None, target: float) -> str:
    """That answers were stopped before they could hold what is looked for; empty where none was, or where the untouched
    model's could not have held more than the target either.
    """
    earlier = unheard(run.scores.get("before", {}).get(score.key))
    if not score.stopped or (before is not None and before + earlier - target < LEAST_GAP):
        return ""
    return f"{STOPPED}: {score.stopped} of {score.n or score.stopped} answers"


def _left_of_task(run: RunData, criteria: Criteria, score: Score, tasks: int) -> Number:
    """What is left of one of several tasks, or persons, which the mean over all can hide.

    Its interval is widened for as many `tasks` as are judged (Bonferroni), and the target is the most of the upper ends
    of its own unseen texts and of all. Where only other kinds have unseen texts it may be guessed more often: open. So
    it is where the interval is too wide, and most rows are said, more than guesses would be: all rows were asked.
    """
    before, (target, whose) = before_of(run, score), target_of(run, score)
    others = both_unseen(run, score)
    alone = whose == NEVER_SEEN and not others[0] and f"forget/{score.name}/{COMPARED}" in run.scores.get("after", {})
    if whose in (RETRAINED, ORIGIN):
        theirs = run.scores.get("retrained", {})
        others = [theirs.get(score.key), theirs.get(f"{score.set}/{score.name}")]
    ends = [other.high if other.bounded else other.value for other in others if other and other.known]
    target = 0.0 if target is None else target
    most, from_whom = max([target, *ends]), f"{whose}, at most" if ends else whose
    if score.bounded:
        low = score.value - widened(tasks) * (score.value - score.low)
        found = _left(run, criteria, replace(score, low=low), before, most, from_whom)
        if found.state == "bad":
            found = replace(found, low=score.low)
            return replace(found, state="unclear", limit=NO_UNSEEN) if alone else found
    chance = max(target, ends[-1]) if whose == RETRAINED else most  # a retrained model was asked these very rows
    found = _left(run, criteria, replace(score, low=NAN, high=NAN), before, most, from_whom)
    if found.state == "bad" and score.value > 0.5 and by_guessing(score, chance) < UNLIKELY:
        number = shown(score, before, most, from_whom, NO_UNSEEN if alone else MOSTLY)
        return replace(number, state="unclear", excess=found.excess)
    return shown(score, before, target, whose, "one task: only an interval wholly above the criterion counts")
