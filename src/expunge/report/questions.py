"""The four questions of the verdict, each answered from numbers by the one set of criteria.

A number is judged where a target is known: that of a retrained model, else the one that the results name, else what
unseen texts give, else that of the checkpoint from before; a count of rows that are said word for word has the target
0. A number without any target is shown and not judged.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from statistics import NormalDist

from expunge.config.criteria import Criteria
from expunge.data.holdout import FEWEST
from expunge.evaluation.estimate import WITHHELD
from expunge.evaluation.results import COMPARED
from expunge.report.answers import (
    CHANCE,
    NEVER_SEEN,
    NONE,
    ORIGIN,
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
from expunge.report.losses import drift_of, exact_losses, said_by_losses
from expunge.report.run_data import RunData
from expunge.report.scores import CHANGE, UNSEEN, Score, kept, knowledge, number, speech, unseen
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
FEWEST_KEPT = 10
"""That none of fewer texts to keep is lost shows little; that some are counts."""
FEWEST_OF_TASK = 5
"""Fewest rows by which a task is judged by itself."""
FEWEST_TEXTS = 2
"""An AUC of fewer texts on a side says nothing: another text could give any other number."""
TO_SCORE = "Score the model before and after: `expunge evaluate --run RUN`."
TO_ASK = "Give texts with prompts, or longer ones: a short text alone is read, and no answer to it can be judged."
TO_KEEP = "Give texts to keep: `expunge evaluate --run RUN --retain FILE --overwrite`."
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
        "tasks, is above that for the upper end of what unseen texts give."
    )
    numbers, known = [], knowledge(run.scores.get("after", {}))
    for score, before, target, whose in _with_targets(run, known):
        alike = known.get(f"{score.key}/{COMPARED}")
        if whose == NEVER_SEEN and alike:
            numbers.append(shown(score, before, None, "", "not judged: some are of kinds without unseen texts"))
            score, before = alike, _before(run, alike)
        numbers.append(_left(run, criteria, score, before, target, whose))
    tasks = _tasks(known)
    numbers += [_left_of_task(run, criteria, score, len(tasks)) for score in tasks]
    if any(own.state != "shown" for own in numbers):
        answer = answered(SAID, ("yes", "no"), numbers, rule, doubts=doubts(run, criteria))
        facts = next((own.says for own in numbers if own.key == "forget/key_fact"), "")  # what a request asks for
        return answer if answer.says.startswith(facts) else replace(answer, says=f"{facts}; {answer.says}")
    if any(own.limit == AS_UNSEEN for own in numbers):  # losses know no chance
        need = (
            "No number stood clearly above that of unseen texts before: give a retrained model (`evaluate "
            "--reference`), or more texts."
        )
        return Answer(SAID, "not measured", "not measured", "there is nothing to lose", rule, need, tuple(numbers))
    need = TO_SCORE
    if numbers and not any(own.limit == UNKNOWN for own in numbers):
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
    if before is None or before - target >= _by_chance(run, score, whose):
        return found
    by_few = plain and target <= criteria.max_exact_match and found.state != "good"
    return replace(found, state="unclear") if by_few else shown(score, before, target, whose, AS_UNSEEN)


def _left_of_task(run: RunData, criteria: Criteria, score: Score, tasks: int) -> Number:
    """What is left of one of several tasks, or persons, which the mean over all can hide.

    Its interval is widened for as many `tasks` as are judged (Bonferroni), and the target is the most of the upper ends
    of its own unseen texts and of all. Where only other kinds have unseen texts it may be guessed more often: open.
    """
    before, (target, whose) = _before(run, score), _target(run, score)
    others = _unseen_of(run, score)
    alone = whose == NEVER_SEEN and not others[0] and f"forget/{score.name}/{COMPARED}" in run.scores.get("after", {})
    if whose in (RETRAINED, ORIGIN):
        theirs = run.scores.get("retrained", {})
        others = [theirs.get(score.key), theirs.get(f"{score.set}/{score.name}")]
    ends = [own.high if own.bounded else own.value for own in others if own and own.known]
    if score.bounded and target is not None:
        wider = NormalDist().inv_cdf(1 - 0.025 / tasks) / NormalDist().inv_cdf(0.975)
        low = score.value - wider * (score.value - score.low)
        found = _left(
            run, criteria, replace(score, low=low), before, max([target, *ends]), f"{whose}, at most" if ends else whose
        )
        if found.state == "bad":
            found = replace(found, low=score.low)
            return replace(found, state="unclear", limit="not judged: its kind has no unseen texts") if alone else found
    return shown(score, before, target, whose, "one task: only an interval wholly above the criterion counts")


def recognisable(run: RunData, criteria: Criteria) -> Answer:
    """Whether membership attacks, or tests against a reference, tell the forgotten texts from unseen ones."""
    rule = (
        f"No when every membership AUC lies within {criteria.auc_tolerance:g} of its target on either side (or no "
        "farther than chance gives on so few texts and so many attacks), its interval leaves out the untouched model's "
        f"value, and no test tells the model from a retrained one (p < {criteria.significance:g}, shared among tests)."
    )
    numbers, tests = [], _tests(run)
    found = attacks(run.scores.get("after", {}))
    for score, before, target, whose in _with_targets(run, found):
        if target is None or whose == CHANCE:
            target, whose = criteria.target_auc, CHANCE
        pair = sides(score)
        bound = criteria.auc(chance_sd(*pair) if all(pair) else 0.0, target, attack_kinds(found))
        below = 1.0 if before is None or bound.violation(before) == 0 else before  # it had nothing to lose
        own = judged(score, before, bound, whose, below=below)
        alone = not score.bounded and min(pair) < FEWEST_TEXTS
        plain = criteria.auc(0.0, target)  # where chance alone allows 0 or 1, so few texts tell nothing
        too_few = alone or any(bound.violation(end) == 0 < plain.violation(end) for end in (0.0, 1.0))
        numbers.append(replace(own, state="unclear") if too_few and own.state == "good" else own)
    texts = max((own.n or 0 for own in run.scores.get("after", {}).values() if own.set == "forget"), default=0)
    for name, p in tests.items():
        label = name.removesuffix("_p").replace("_ks", ", Kolmogorov-Smirnov").replace("_", " ")
        whose = ORIGIN if run.compared.get("kind") == "origin" else RETRAINED
        least = criteria.significance / len(tests)
        told = p < least
        limit, state = f"at least {least:g}", "bad" if told else "good"
        if not told and texts > 0 and 2 / math.comb(2 * texts, texts) >= least:
            state = "unclear"  # no two sets of so few losses can be told apart
        if whose == ORIGIN:  # a model that was trained on other texts alone is told from it, too
            limit, state = "not judged: a retrained model is another one, too", "shown"
        says = f"{'a' if told else 'no'} test tells it from {whose} ({label}, p = {p:.2g})"
        numbers.append(Number(name, says, p, target_from=whose, limit=limit, state=state, excess=1 - p))
    if all(own.state == "shown" for own in numbers):
        need = f"Give {UNSEEN_TEXTS} (--holdout FILE) to `unlearn` and `evaluate`."
        if run.settings.get("benchmark"):  # which takes no unseen texts beside its own
            need = (
                f"Give {UNSEEN_TEXTS} (--holdout FILE) to `unlearn`, and a retrained model to `evaluate` (--reference "
                "MODEL), which takes no further texts beside a benchmark's."
            )
        need = TO_SCORE if "after" not in run.scores and unseen_given(run) else need
        says = "no membership attack was run"
        if any(own.reason == WITHHELD for own in run.scores.get("after", {}).values()):
            need = "It takes four texts on either side."
            says = "of so few texts no membership attack is told, since that would give short secrets away"
        return Answer(TOLD, "not measured", "not measured", says, rule, need, tuple(numbers))
    answer = answered(TOLD, ("yes", "no"), numbers, rule, doubts=doubts(run, criteria))
    left_out = run.results.get("after", {}).get("settings", {}).get("attacks_left_out")
    if left_out and answer.state == "good":
        need = f"Evaluate without --attacks: {', '.join(left_out)} were left out."
        says = f"{answer.says}, but not all attacks were run"
        answer = replace(answer, answer="unclear", state="unclear", says=says, need=need)
    if any(own.target_from == CHANCE for own in numbers):
        note = "Chance is an attack that is right for half of the texts; a retrained model's number can be another one."
        return replace(answer, notes=(note,))
    return answer


def rest_kept(run: RunData, criteria: Criteria) -> Answer:
    """Whether the rest is still known, and texts that nobody mentioned are as likely as before."""
    rule = (
        f"Yes when every score of the rest has at least {criteria.min_retain:.0%} of its value before (fewer than "
        f"{FEWEST_KEPT} texts, and those trained on where others were not, count only where they are lost; of the few, "
        "where as much as a whole text seems lost), and the loss of texts that the model has never seen rose by at "
        f"most {criteria.max_drift:.0%}."
    )
    numbers, scores = [], _whole(kept(run.scores.get("after", {})))

    def telling(score: Score) -> bool:
        return score.n is None or score.n >= FEWEST_KEPT

    enough = {score.set for score in scores if _before(run, score) and telling(score)}
    for score in scores:
        before = _before(run, score)
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
            found = replace(found, state="unclear")
        numbers.append(found)
    scored = any(own.state != "shown" for own in numbers)
    side = "test" if exact_losses(run, "test") else "retain"
    drift, pair = drift_of(run, criteria), exact_losses(run, side)
    if not scored and pair:
        share, bound = math.exp(min(0.0, pair[0] - pair[1])), criteria.retained()
        says = f"the loss of the texts to keep went from {show_number(pair[0])} to {show_number(pair[1])}"
        numbers.append(
            Number(
                f"{side}/loss", says, pair[1], before=pair[0], target=pair[0], target_from=UNTOUCHED,
                limit=f"tokens at least {criteria.min_retain:.0%} as likely as before",
                state="bad" if bound.violation(share) else "good", excess=bound.excess(share),
            )
        )  # fmt: skip
    numbers += drift
    need = TO_KEEP if "after" in run.scores and not scores else TO_SCORE
    if all(own.state == "shown" for own in numbers):
        return Answer(KEPT, "not measured", "not measured", "no scores of the rest", rule, need, tuple(numbers))
    flag = "" if unseen_given(run) else " (--holdout FILE)"
    notes = [] if drift else [f"No texts that the model has never seen were measured{flag}."]
    sets = {own.key.split("/")[0] for own in numbers if own.state != "shown" and own not in drift}
    if sets == {TRAINED} and run.manifest.get("rows", {TRAINED: 1}).get(TRAINED):
        notes.append(ON_TRAINED)
    answer = answered(KEPT, ("no", "yes"), numbers, rule, notes)
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
        f"{criteria.max_repetition:g} above the untouched model's, or above a retrained model's where it is higher."
    )
    numbers, said = [], speech(run.scores.get("after", {}))
    for score, before, target, whose in _with_targets(run, said):
        if whose == ORIGIN or (before is not None and (target is None or before > target)):
            target, whose = before, UNTOUCHED
        if target is None or score.name == "fluency" or (score.set == "forget" and "refusal" in score.name):
            numbers.append(shown(score, before, None, "", "no target is known"))
        else:
            numbers.append(judged(score, before, criteria.speech(target), whose))
    if any(own.state != "shown" for own in numbers):
        answer = answered(SPEAKS, ("no", "yes"), numbers, rule)
        answering = {own.set for own in said.values() if "refusal" in own.name}
        if answer.state == "good" and answering and answering <= {"forget", *UNSEEN}:
            says = f"{answer.says}, but it was asked nothing that should be answered"
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
    attacked = after is None or any(own.family == "membership" and own.known for own in after.values())
    return attacked and run.settings.get("benchmark") in WITH_UNSEEN


def _asks_others(run: RunData) -> bool:
    """Whether answers to prompts other than those to forget and unseen ones were measured."""
    others = [own for own in run.scores.get("after", {}).values() if own.set not in ("forget", *UNSEEN)]
    return any(own.family == "text" and own.known for own in others)


def _whole(scores: dict[str, Score]) -> list[Score]:
    """The scores over all tasks; of paraphrased questions whether the fact is said."""
    return [score for score in scores.values() if not score.task or score.key == "forget/key_fact/paraphrased"]


def _tasks(scores: dict[str, Score]) -> list[Score]:
    """Counts of rows of one task each, of those with rows enough."""
    return [
        score
        for score in scores.values()
        if score.task not in ("", "paraphrased", COMPARED)
        and score.name.startswith(tuple(PLAIN))
        and (score.n or 0) >= FEWEST_OF_TASK
    ]


def _with_targets(run: RunData, scores: dict[str, Score]) -> Iterator[tuple[Score, float | None, float | None, str]]:
    """Each score over all tasks, the untouched model's value, the target, and what that is."""
    for score in _whole(scores):
        yield score, _before(run, score), *_target(run, score)


def _before(run: RunData, score: Score) -> float | None:
    """The untouched model's value: its own results', or what is left when the paired change from it is taken off."""
    earlier = run.scores.get("before", {}).get(score.key)
    if earlier and earlier.known:
        return earlier.value
    change = run.scores.get("after", {}).get(f"{score.key}{CHANGE}")
    return score.value - change.value if change and change.known else None


def _target(run: RunData, score: Score) -> tuple[float | None, str]:
    """What a model that never saw the texts would get, as well as is known, and what that number is.

    Of models that were retrained, unseen texts come closest, and the checkpoint from before can be far off.
    """
    known = run.scores.get("retrained", {}).get(score.key), _reference(run)
    unseen = _unseen(run, score) if score.target is None and score.set == "forget" else None, NEVER_SEEN
    for found, whose in (unseen, known) if known[1] == ORIGIN else (known, unseen):
        if found and found.known:
            return found.value, whose
    if score.target is not None:
        return score.target, CHANCE
    return (0.0, NONE) if score.name.startswith(tuple(PLAIN)) else (None, "")


def _unseen(run: RunData, score: Score) -> Score | None:
    """The same metric of unseen texts: of the score's task where they are enough of it, else of all."""
    return next(filter(None, _unseen_of(run, score)), None)


def _unseen_of(run: RunData, score: Score) -> list[Score | None]:
    """The same metric of unseen texts, of the score's task where they are `FEWEST` and more, and of all."""
    after = run.scores.get("after", {})
    return [unseen(after, f"{score.name}/{score.task}", FEWEST) if score.task else None, unseen(after, score.name)]


def _by_chance(run: RunData, score: Score, whose: str) -> float:
    """How far the untouched model's value can be from that of unseen texts by both intervals; 0 of other targets.

    A forget set that was never known is as well said as other texts are.
    """
    if whose != NEVER_SEEN:
        return 0.0
    pair = run.scores.get("before", {}).get(score.key, score), _unseen(run, score)
    return math.hypot(*((own.high - own.low) / 2 for own in pair if own and own.bounded))


def _reference(run: RunData) -> str:
    """What the model is that never saw the texts."""
    return ORIGIN if run.reference == "origin" else RETRAINED


def _tests(run: RunData) -> dict[str, float]:
    """P of the tests against a reference model."""
    tests = run.compared.get("indistinguishable")
    if not isinstance(tests, dict):
        return {}
    return {str(name): p for name, value in tests.items() if (p := number(value)) is not None}
