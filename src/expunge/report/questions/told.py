"""Can one tell that it was trained on?"""

import math
from dataclasses import replace

from expunge.config.criteria import Criteria
from expunge.data.holdout import FEWEST_ATTACKED
from expunge.evaluation.estimate import ONE_TEXT, WITHHELD, Estimate
from expunge.evaluation.results import COMPARED
from expunge.report.answers import (
    CHANCE,
    NEVER_SEEN,
    ORIGIN,
    OTHER_TARGET,
    OWN_TARGET,
    RETRAINED,
    SOME_UNLIKE,
    TO_SCORE,
    Answer,
    Number,
    answered,
    judged,
    shown,
)
from expunge.report.doubts import attack_kinds, attacks, doubts, sides
from expunge.report.own_texts import other_unseen
from expunge.report.run_data import RunData
from expunge.report.scores import EXPOSURE
from expunge.report.targets import (
    TWO_SIDED,
    before_of,
    reach,
    target_of,
    tests_of,
    unseen_given,
    unseen_of,
    with_targets,
)
from expunge.utils.roc import chance_sd
from expunge.utils.text import UNSEEN_TEXTS

TOLD = "Can one tell that it was trained on?"
FEWEST_TESTED = 25
"""Fewest losses by which a Kolmogorov-Smirnov test can acquit: from here on it finds a shift by a standard deviation
with a power of 80 %.
"""
OTHER_UNSEEN = "Compared with other unseen texts than those that the run was given."
TO_ATTACK = (
    f"An attack shows nothing where it is less exact than one on {FEWEST_ATTACKED} texts of either side, or all of a "
    f"side is one document: give {2 * FEWEST_ATTACKED} to forget and {2 * FEWEST_ATTACKED} unseen ones (--holdout), "
    "half of which steer the run."
)
TO_TEST = (
    f"A test against another model misses a shift by a standard deviation too often on fewer than {FEWEST_TESTED} "
    "losses: give more texts to forget."
)


def recognisable(run: RunData, criteria: Criteria) -> Answer:
    """Whether membership attacks, or tests against a reference, tell the forgotten texts from unseen ones."""
    rule = (
        f"No when every membership AUC lies within {criteria.auc_tolerance:g} of its target on either side (or no "
        "farther than chance gives on so few texts and so many attacks, of a retrained model's number by the paired "
        "difference of the two), its interval leaves out the untouched model's "
        f"value, and no test tells the model from a retrained one (p < {criteria.significance:g}, shared among tests). "
        f"What is good by an attack that is less exact than one on {FEWEST_ATTACKED} texts of either side, or by a "
        f"test on fewer than {FEWEST_TESTED}, is unclear, and so is all of an attack on a single document of a side. "
        "How often a forgotten answer is likelier than another one of its form counts as an attack where a retrained "
        "model or unseen texts say how often it should be."
    )
    numbers, tests, short = [], tests_of(run), False
    found = attacks(run.scores.get("after", {}))
    for score, before, target, whose in with_targets(run, found):
        if target is None or whose == CHANCE:
            target = criteria.target_auc
            whose = CHANCE if target == Criteria.target_auc else OWN_TARGET
        pair = sides(score)
        chance = chance_sd(*pair) if all(pair) else 0.0
        paired = score.difference if whose == RETRAINED and target == score.reference else None
        bound = criteria.auc(spread(paired) or chance, target, attack_kinds(found))
        below = 1.0 if before is None or bound.violation(before) == 0 else before  # it had nothing to lose
        number = judged(score, before, bound, whose, below=below)
        few = chance > chance_sd(FEWEST_ATTACKED, FEWEST_ATTACKED) or not (all(pair) or score.bounded)
        plain = criteria.auc(0.0, target)  # where chance alone allows 0 or 1, so few texts tell nothing
        few = few or any(bound.violation(end) == 0 < plain.violation(end) for end in (0.0, 1.0))
        alone = ONE_TEXT in score.reason  # documents are its unit, and chance takes each text as one
        few = alone or (few and number.state == "good")
        short = short or few
        numbers.append(replace(number, state="unclear") if few else number)
    numbers += _exposure(run, criteria, attack_kinds(found))
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
    notes = {
        "Chance is an attack that is right for half of the texts; a retrained model's number can be another one.": any(
            number.target_from == CHANCE for number in numbers
        ),
        OTHER_UNSEEN: other_unseen(run),
    }
    return replace(answer, notes=tuple(note for note, holds in notes.items() if holds))


def _exposure(run: RunData, criteria: Criteria, attacks: int) -> list[Number]:
    """Whether forgotten answers can be picked out of others of their form, which no attack on whole texts looks for.

    Judged as `attacks` are, by a retrained model's number or that of unseen texts: a question may tell something of its
    answer to anyone, so chance is no target. Alone, or on fewer rows of a side than an attack needs, it acquits nobody;
    where a side has no interval, as of a single document, it is unclear.
    """
    after, numbers = run.scores.get("after", {}), []
    score = after.get(f"forget/{EXPOSURE}")
    if score is None or not score.known:
        return []
    before, (target, whose) = before_of(run, score), target_of(run, score)
    if target is None:
        return [shown(score, before, None, "", "no target is known")]
    other = run.scores.get("retrained", {}).get(score.key)
    if whose == NEVER_SEEN:
        other = unseen_of(run, score)
        if alike := after.get(f"{score.key}/{COMPARED}"):
            numbers.append(shown(score, before, None, "", SOME_UNLIKE))
            score, before = alike, before_of(run, alike)
    pair = [side for side in (score, other) if side]
    paired = spread(score.difference) if target == score.reference else 0.0
    bound = criteria.auc(paired or reach(pair) / TWO_SIDED, target, attacks + 1)
    number = judged(score, before, bound, whose, below=1.0 if before is None else before)
    few = min((side.n for side in pair if side.n is not None), default=0) < FEWEST_ATTACKED
    if not attacks and number.state == "good":
        number = replace(number, state="shown")
    elif (few and number.state == "good") or not (
        paired or all(side.bounded for side in pair)
    ):  # how far chance goes is not known
        number = replace(number, state="unclear")
    return [*numbers, number]


def spread(paired: Estimate | None) -> float:
    """Standard deviation of an AUC's distance from that of a retrained model on the same texts, by the interval of
    their paired difference; 0 where that is not known.
    """
    return 0.0 if paired is None or math.isnan(paired.low) else (paired.high - paired.low) / (2 * TWO_SIDED)
