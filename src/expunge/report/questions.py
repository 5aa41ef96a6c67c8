"""The four questions of the verdict, each answered from numbers by the one set of criteria.

A number is judged where a target is known: that of a retrained model, else the one that the results name, else what
unseen texts give, else that of the checkpoint from before; a count of rows that are said word for word has the target
0. A number without any target is shown and not judged. What is good by too few texts to show it is unclear.
"""

import math
from dataclasses import replace
from statistics import NormalDist

from expunge.config.criteria import Criteria
from expunge.data.holdout import FEWEST, FEWEST_ATTACKED
from expunge.evaluation.estimate import NAN, ONE_TEXT, WITHHELD
from expunge.evaluation.results import COMPARED
from expunge.report.answers import (
    CHANCE,
    GUESSED,
    NEVER_SEEN,
    NONE,
    ORIGIN,
    OTHER_TARGET,
    OWN_TARGET,
    PLAIN,
    RETRAINED,
    UNTOUCHED,
    Answer,
    Number,
    answered,
    judged,
    shown,
)
from expunge.report.doubts import attack_kinds, attacks, doubts, sides
from expunge.report.losses import MARGIN, drift_of, exact_losses, said_by_losses, texts_of
from expunge.report.run_data import RunData
from expunge.report.scores import UNSEEN, Score, kept, knowledge, speech
from expunge.report.targets import (
    FEWEST_OF_TASK,
    before_of,
    both_unseen,
    by_chance,
    by_guessing,
    change_of,
    may_be_none,
    target_of,
    tasks_of,
    tests_of,
    unseen_of,
    whole,
    with_targets,
)
from expunge.utils.roc import chance_sd
from expunge.utils.text import UNSEEN_TEXTS, show_number

TRAINED = "retain"
"""The set of texts to keep that a run trains on."""
ON_TRAINED = "Measured on texts that the run trained on to keep them: others may have suffered more."
WITH_UNSEEN = ("semeval", "lume", "muse")
"""Benchmarks that bring texts like those to forget that the model has never seen."""
LEAST_GAP = 0.02
"""A metric on which the untouched model is closer to its target than this has nothing to lose."""
UNKNOWN = "no value of the untouched model"
AS_UNSEEN = "nothing to lose: it was no higher than unseen texts are by chance"
NO_UNSEEN = "not judged: its kind has no unseen texts"
MOSTLY = "one task: most of its rows are still said"
UNLIKELY = 0.01
"""As many rows of a task as are said are no guesses where they would be with a smaller probability than this."""
FEWEST_KEPT = 10
"""That none of fewer texts to keep is lost shows little; that some are counts."""
FEWEST_ALL, ENOUGH_GIVEN = 38, 48
"""Rows, all of which were kept, that leave out a loss of `MARGIN` (95 %, each by itself), which is how those of one
document and a change that is not known are judged, too; as many texts that are given, a fifth of which is set apart.
"""
KNOWN = 0.5
"""Of a score that was lower the margin is that of this one: 15 of 1,000 texts that are said leave out no relative loss.
"""
FEWEST_TESTED = 25
"""Fewest losses by which a Kolmogorov-Smirnov test can acquit: from here on it finds a shift by a standard deviation
with a power of 80 %.
"""
TO_SCORE = "Score the model before and after: `expunge evaluate --run RUN`."
TO_ASK = "Give texts with prompts, or longer ones: a short text alone is read, and no answer to it can be judged."
TO_KEEP = "Give texts to keep: `expunge evaluate --run RUN --retain FILE --overwrite`."
TO_SHOW = (
    f"So few texts to keep cannot show that less than a tenth was lost: {ENOUGH_GIVEN} can where all are known and "
    f"kept, {FEWEST_ALL} with --retain-test 0."
)
TO_LOOK = (
    "Most rows of a task, or a person, are still said, which the others hide: train longer (--epochs), or look at the "
    "answers (`expunge report --show-examples N`)."
)
TO_ATTACK = (
    f"An attack shows nothing where it is less exact than one on {FEWEST_ATTACKED} texts of either side, or all of a "
    f"side is one document: give {2 * FEWEST_ATTACKED} to forget and {2 * FEWEST_ATTACKED} unseen ones (--holdout), "
    "half of which steer the run."
)
TO_TEST = (
    f"A test against another model misses a shift by a standard deviation too often on fewer than {FEWEST_TESTED} "
    "losses: give more texts to forget."
)
TO_REFUSE = "Give texts to keep that have prompts: whether the model declines others, too, is not known."
NOT_ASKED = "No prompt that should be answered was asked: whether the model declines others, too, is not known."
SAID, TOLD, KEPT, SPEAKS = (
    "Is it still said?", "Can one tell that it was trained on?", "Is the rest kept?", "Does it still speak well?",
)  # fmt: skip


def still_said(run: RunData, criteria: Criteria) -> Answer:
    """Whether what the model says and knows of the forget texts has come down to the target of every metric."""
    rule = (
        f"No when every number has at most {criteria.max_left:.0%} of the way from the untouched model to its target "
        f"left (of answers word for word, of key facts and of texts said in one of several answers, or "
        f"{criteria.max_exact_match:.0%} of the rows), and its interval leaves out the untouched model's value; of "
        f"these three, a task of {FEWEST_OF_TASK} rows and more counts where its whole interval, widened for as many "
        "tasks, is above that for the upper end of what unseen texts give, and is unclear where most of its rows are "
        f"said. What is good by fewer than {FEWEST} unseen texts is unclear."
    )
    numbers, known = [], knowledge(run.scores.get("after", {}))
    for score, before, target, whose in with_targets(run, known):
        alike = known.get(f"{score.key}/{COMPARED}")
        if whose == NEVER_SEEN and alike:
            numbers.append(shown(score, before, None, "", "not judged: some are of kinds without unseen texts"))
            score, before = alike, before_of(run, alike)
        numbers.append(_left(run, criteria, score, before, target, whose))
    tasks = tasks_of(known)
    numbers += [_left_of_task(run, criteria, score, len(tasks)) for score in tasks]
    if any(number.state != "shown" for number in numbers):
        answer = answered(SAID, ("yes", "no"), numbers, rule, doubts=doubts(run, criteria))
        if answer.state == "unclear" and any(number.limit == MOSTLY for number in numbers):
            answer = replace(answer, need=TO_LOOK)
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
    if before is not None and before - target < LEAST_GAP:
        return shown(score, before, target, whose, "nothing to lose: it was low before")
    bound = criteria.left(target, target if before is None else before, counts_rows=plain)
    found = judged(score, before, bound, whose, below=1.0 if before is None else before)
    if found.state == "good" and whose == NEVER_SEEN:
        unseen = unseen_of(run, score)
        as_none = plain and criteria.left(0.0, before or 0.0, counts_rows=True).violation(score.value) == 0
        if unseen and unseen.n is not None and unseen.n < FEWEST and not as_none:
            found = replace(found, state="unclear", limit=f"{found.limit}; unseen texts: {unseen.n}")
    if before is None or before - target >= by_chance(run, score, whose):
        return found
    by_few = plain and target <= criteria.max_exact_match and found.state != "good"
    return replace(found, state="unclear") if by_few else shown(score, before, target, whose, AS_UNSEEN)


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
        wider = NormalDist().inv_cdf(1 - 0.025 / tasks) / NormalDist().inv_cdf(0.975)
        low = score.value - wider * (score.value - score.low)
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


def recognisable(run: RunData, criteria: Criteria) -> Answer:
    """Whether membership attacks, or tests against a reference, tell the forgotten texts from unseen ones."""
    rule = (
        f"No when every membership AUC lies within {criteria.auc_tolerance:g} of its target on either side (or no "
        "farther than chance gives on so few texts and so many attacks), its interval leaves out the untouched model's "
        f"value, and no test tells the model from a retrained one (p < {criteria.significance:g}, shared among tests). "
        f"What is good by an attack that is less exact than one on {FEWEST_ATTACKED} texts of either side, or by a "
        f"test on fewer than {FEWEST_TESTED}, is unclear, and so is all of an attack on a single document of a side."
    )
    numbers, tests, short = [], tests_of(run), False
    found = attacks(run.scores.get("after", {}))
    for score, before, target, whose in with_targets(run, found):
        if target is None or whose == CHANCE:
            target = criteria.target_auc
            whose = CHANCE if target == Criteria.target_auc else OWN_TARGET
        pair = sides(score)
        chance = chance_sd(*pair) if all(pair) else 0.0
        bound = criteria.auc(chance, target, attack_kinds(found))
        below = 1.0 if before is None or bound.violation(before) == 0 else before  # it had nothing to lose
        number = judged(score, before, bound, whose, below=below)
        few = chance > chance_sd(FEWEST_ATTACKED, FEWEST_ATTACKED) or not (all(pair) or score.bounded)
        plain = criteria.auc(0.0, target)  # where chance alone allows 0 or 1, so few texts tell nothing
        few = few or any(bound.violation(end) == 0 < plain.violation(end) for end in (0.0, 1.0))
        alone = ONE_TEXT in score.reason  # documents are its unit, and chance takes each text as one
        few = alone or (few and number.state == "good")
        short = short or few
        numbers.append(replace(number, state="unclear") if few else number)
    texts = max((score.n or 0 for score in run.scores.get("after", {}).values() if score.set == "forget"), default=0)
    for name, p in tests.items():
        label = name.removesuffix("_p").replace("_ks", ", Kolmogorov-Smirnov").replace("_", " ")
        whose = ORIGIN if run.compared.get("kind") == "origin" else RETRAINED
        least = criteria.significance / len(tests)
        rows = run.compared.get("rows", {}).get(name, texts)
        told = p < least
        limit = f"at least {least:g}"
        state = "bad" if told else "good" if rows >= FEWEST_TESTED else "unclear"  # without power it acquits nobody
        if whose == ORIGIN:  # a model that was trained on other texts alone is told from it, too
            limit, state = "not judged: a retrained model is another one, too", "shown"
        says = f"{'a' if told else 'no'} test tells it from {whose} ({label}, {rows:,} texts, p = {p:.2g})"
        numbers.append(Number(name, says, p, n=rows or None, target_from=whose, limit=limit, state=state, excess=1 - p))
    if all(number.state == "shown" for number in numbers):
        need = f"Give {UNSEEN_TEXTS} (--holdout FILE) to `unlearn` and `evaluate`."
        if run.settings.get("benchmark"):  # which takes no unseen texts beside its own
            need = (
                f"Give {UNSEEN_TEXTS} (--holdout FILE) to `unlearn`, and a retrained model to `evaluate` (--reference "
                "MODEL), which takes no further texts beside a benchmark's."
            )
        need = TO_SCORE if "after" not in run.scores and unseen_given(run) else need
        says = "no membership attack was run"
        if any(score.reason == WITHHELD for score in run.scores.get("after", {}).values()):
            need = "It takes four texts on either side."
            says = "of so few texts no membership attack is told, since that would give short secrets away"
        return Answer(TOLD, "not measured", "not measured", says, rule, need, tuple(numbers))
    answer = answered(TOLD, ("yes", "no"), numbers, rule, doubts=doubts(run, criteria))
    unclear = {number.key for number in answer.numbers if number.state == "unclear"}
    if answer.state == "unclear" and answer.need != OTHER_TARGET and (short or unclear <= {*tests}):
        answer = replace(answer, need=TO_ATTACK if short else TO_TEST)
    left_out = run.results.get("after", {}).get("settings", {}).get("attacks_left_out")
    if left_out and answer.state == "good":
        need = f"Evaluate without --attacks: {', '.join(left_out)} were left out."
        says = f"{answer.says}, but not all attacks were run"
        answer = replace(answer, answer="unclear", state="unclear", says=says, need=need)
    if any(number.target_from == CHANCE for number in numbers):
        note = "Chance is an attack that is right for half of the texts; a retrained model's number can be another one."
        return replace(answer, notes=(note,))
    return answer


def rest_kept(run: RunData, criteria: Criteria) -> Answer:
    """Whether the rest is still known, and texts that nobody mentioned are as likely as before."""
    margin = max(MARGIN, 1 - criteria.min_retain)
    rule = (
        f"Yes when every score of the rest has at least {criteria.min_retain:.0%} of its value before (fewer than "
        f"{FEWEST_KEPT} texts, or so few that the interval of the change reaches beyond a loss of {margin:.0%}, and "
        "those trained on where others were not, count only where they are lost; of the few, where as much as a whole "
        "text seems lost; a loss is unclear where the interval of the change reaches 0), and the loss of texts that "
        f"the model has never seen rose by at most {criteria.max_drift:.0%}, "
        f"and its interval to no more than {max(MARGIN, criteria.max_drift):.0%}."
    )
    numbers, scores, short = [], whole(kept(run.scores.get("after", {}))), False

    def sure(score: Score) -> bool:
        before, least = before_of(run, score) or 0.0, change_of(run, score)[0]
        if least is not None and least >= -margin * max(before, KNOWN):
            return True
        return (least is None or score.value == before == 1) and (score.n or FEWEST_ALL) >= FEWEST_ALL

    def telling(score: Score) -> bool:
        return (score.n is None or score.n >= FEWEST_KEPT) and sure(score)

    enough = {score.set for score in scores if before_of(run, score) and telling(score)}
    enough -= {score.set for score in scores if (before_of(run, score) or 0.0) >= KNOWN and not sure(score)}
    for score in scores:
        before = before_of(run, score)
        if not before:
            why = UNKNOWN if before is None else "nothing to lose: it was 0 before"
            numbers.append(shown(score, before, None, "", why))
            continue
        found = judged(score, before, criteria.retained(before), UNTOUCHED)
        weak = "trained on" if score.set == TRAINED and "test" in enough else "few texts" * (not telling(score))
        lost = not telling(score) and before - score.value >= 1 / (score.n or 1)  # as much as a whole text
        if weak and enough and found.state != "bad" and not lost:
            found = replace(found, state="shown", limit=f"{weak}: only a loss counts")
        elif weak and found.state == "good":
            found, short = replace(found, state="unclear"), True
        elif found.state == "bad" and may_be_none(run, score, FEWEST_KEPT):
            found = replace(found, state="unclear", limit=f"{found.limit}; that can be chance")
        numbers.append(found)
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
    if sets == {TRAINED} and run.manifest.get("rows", {TRAINED: 1}).get(TRAINED):
        notes.append(ON_TRAINED)
        if side == "test" and pair:
            moved = f"went from {show_number(pair[0])} to {show_number(pair[1])}"
            notes.append(f"The loss of the {texts_of(run, side, 0):,} that it did not train on {moved}.")
    answer = answered(KEPT, ("no", "yes"), numbers, rule, notes)
    if short and answer.state == "unclear":
        answer = replace(answer, need=TO_SHOW)
    few = max((number.n or FEWEST_KEPT for number in answer.numbers if number.state == "bad"), default=FEWEST_KEPT)
    if few < FEWEST_KEPT:
        answer = replace(answer, says=f"{answer.says}; what is bad is of {few} text{'s' * (few > 1)} only")
    if scored or answer.state == "bad":
        return answer
    says = f"{answer.says}, which alone proves nothing"
    return replace(answer, answer="not measured", state="not measured", says=says, need=need)


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
            numbers.append(judged(score, before, criteria.speech(target), whose))
    if any(number.state != "shown" for number in numbers):
        answer = answered(SPEAKS, ("no", "yes"), numbers, rule)
        answering = {score.set for score in said.values() if "refusal" in score.name}
        should = [score for score in whole(said) if "refusal" in score.name and score.set not in ("forget", *UNSEEN)]
        count = sum(FEWEST_KEPT if score.n is None else score.n for score in should)
        if answer.state == "good" and answering and count < FEWEST_KEPT:
            asked = f"only {count} prompt{'s' * (count > 1)}" if should else "nothing"
            says = f"{answer.says}, but it was asked {asked} that should be answered"
            return replace(answer, answer="unclear", state="unclear", says=says, need=TO_REFUSE)
        return answer if answering or _asks_others(run) else replace(answer, notes=(NOT_ASKED,))
    says = "there is nothing to compare it with" if numbers else "what the model says was not measured"
    need = TO_ASK if "after" in run.scores and not numbers else TO_SCORE
    return Answer(SPEAKS, "not measured", "not measured", says, rule, need, tuple(numbers))


# --- what they are answered from -----------------------------------------------------------------


def unseen_given(run: RunData) -> bool:
    """Whether the run had texts that the model has never seen: the user's, those that steered it, or a benchmark's."""
    if run.manifest.get("rows", {}).get("holdout") or run.calibration.get("selection_hmac"):
        return True
    after = run.scores.get("after")
    attacked = after is None or any(score.family == "membership" and score.known for score in after.values())
    return attacked and run.settings.get("benchmark") in WITH_UNSEEN


def _asks_others(run: RunData) -> bool:
    """Whether answers to prompts other than those to forget and unseen ones were measured."""
    others = [score for score in run.scores.get("after", {}).values() if score.set not in ("forget", *UNSEEN)]
    return any(score.family == "text" and score.known for score in others)
