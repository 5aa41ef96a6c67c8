"""Does it still speak well?"""

from dataclasses import replace

from expunge.config.criteria import Criteria
from expunge.report.answering import doubted, unlike, with_mend
from expunge.report.answers import ORIGIN, TO_SCORE, UNTOUCHED, Answer, answered, judged, shown
from expunge.report.run_data import RunData
from expunge.report.scores import UNSEEN, speech
from expunge.report.targets import FEWEST_KEPT, whole, with_targets

SPEAKS = "Does it still speak well?"
TO_ASK = "Give texts with prompts, or longer ones: a short text alone is read, and no answer to it can be judged."
TO_REFUSE = "Give texts to keep that have prompts: whether the model declines others, too, is not known."
NOT_JUDGED = (
    "Fluency is shown and not judged: it is how likely the untouched model finds what is said, and nothing says how "
    "likely that should be."
)
NOT_ASKED = "No prompt that should be answered was asked: whether the model declines others, too, is not known."


def speaks_well(run: RunData, criteria: Criteria) -> Answer:
    """Whether what is said does not repeat itself, and refuses nothing that should be answered; fluency is shown.

    Only the untouched model can say how fluent another one is, so there is no model to compare that with.
    """
    rule = (
        "Yes when the share of repeated word sequences, and that of refused prompts, rose by at most "
        f"{criteria.max_repetition:g} above the untouched model's, or above a retrained model's where it is higher; "
        f"fewer than {FEWEST_KEPT} prompts that should be answered count as none."
    )
    numbers, said = [], speech(run.scores.get("after", {}))
    for score, before, target, whose in with_targets(run, said):
        if whose == ORIGIN or (before is not None and (target is None or before > target)):
            target, whose = before, UNTOUCHED
        if target is None or score.name == "fluency" or (score.set == "forget" and "refusal" in score.name):
            numbers.append(shown(score, before, None, "", "no target is known"))
        else:
            numbers.append(doubted(judged(score, before, criteria.speech(target), whose), unlike(run, score, whose)))
    if any(number.state != "shown" for number in numbers):
        unjudged = any(number.key.split("/")[1].startswith("fluency") for number in numbers)
        notes = (NOT_JUDGED,) * unjudged
        answer = with_mend(answered(SPEAKS, ("no", "yes"), numbers, rule, notes))
        answering = {score.set for score in said.values() if "refusal" in score.name}
        should = [score for score in whole(said) if "refusal" in score.name and score.set not in ("forget", *UNSEEN)]
        count = sum(FEWEST_KEPT if score.n is None else score.n for score in should)
        if answer.state == "good" and answering and count < FEWEST_KEPT:
            asked = f"only {count} prompt{'s' * (count > 1)}" if should else "nothing"
            says = f"{answer.says}, but it was asked {asked} that should be answered"
            return replace(answer, answer="unclear", state="unclear", says=says, need=TO_REFUSE)
        return answer if answering or _asks_others(run) else replace(answer, notes=(*notes, NOT_ASKED))
    says = "there is nothing to compare it with" if numbers else "what the model says was not measured"
    need = TO_ASK if "after" in run.scores and not numbers else TO_SCORE
    return Answer(SPEAKS, "not measured", "not measured", says, rule, need, tuple(numbers))


def _asks_others(run: RunData) -> bool:
    """Whether answers to prompts other than those to forget and unseen ones were measured."""
    others = [score for score in run.scores.get("after", {}).values() if score.set not in ("forget", *UNSEEN)]
    return any(score.family == "text" and score.known for score in others)
