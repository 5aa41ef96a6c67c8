"""Why a target may be none: unseen texts, or a reference, that have seen what they must not."""

import math
import re
from collections.abc import Mapping

from expunge.config.criteria import Criteria
from expunge.report.answers import CHANCE, NEVER_SEEN, OWN_TARGET, RETRAINED
from expunge.report.run_data import RunData
from expunge.report.scores import Score, unseen
from expunge.utils.roc import chance_sd

CLEARLY = 2
"""Times what a criterion allows, or standard deviations of chance, beyond which a target is doubted."""
FAMILIAR = 0.3
"""How far above chance a retrained model's AUC may be at least: unseen texts can be somewhat harder than the others."""

GUESSED = 0.25
"""Share of unseen texts whose facts may be guessed: half of the key words is enough, in whatever words."""
NOT_COUNTED = {"said": 0, "texts": 0}


def doubts(run: RunData, criteria: Criteria) -> dict[str, str]:
    """What a target is -> why it may be none, of those where that is so.

    Chance is none where the unseen texts are none: an attack compares with them, whatever it should come to.
    """
    unseen_texts = _unseen(run, criteria)
    found = {**dict.fromkeys((NEVER_SEEN, CHANCE, OWN_TARGET), unseen_texts), RETRAINED: _reference(run, criteria)}
    return {whose: told for whose, told in found.items() if told}


def attacks(scores: Mapping[str, Score]) -> dict[str, Score]:
    """The AUC of each membership attack on the texts of all tasks."""
    return {
        key: score
        for key, score in scores.items()
        if score.family == "membership" and score.name.endswith("auc") and score.known and not score.task
    }


def attack_kinds(scores: Mapping[str, Score]) -> int:
    """How many different attacks there are: min-k at any shares is one."""
    return len({re.sub(r"_[0-9]+(?=_)", "", score.name) for score in scores.values()})


def sides(score: Score) -> tuple[float, float]:
    """Texts on either side of an attack; half of all in results of before they were counted."""
    half = (score.n or 0) / 2
    return score.members or half, score.nonmembers or half


def _unseen(run: RunData, criteria: Criteria) -> str:
    """Whether many unseen texts are said to the letter, before or after, or their facts by the untouched model, of
    those that cannot be guessed, which older results do not tell from the others; else what the run itself has found
    against its unseen texts.
    """
    before, after = (run.results.get(role, {}).get("unseen_said", NOT_COUNTED) for role in ("before", "after"))
    for counted in (before, after):  # unlearning makes them less likely, too
        said, texts = counted["said"], counted["texts"]
        if said > max(1, CLEARLY * criteria.max_exact_match * texts):
            return f"{said} of {texts} unseen texts are said word for word: has the model seen them?"
    facts, texts = before.get("facts", 0), before["texts"]
    if facts > max(1, GUESSED * texts):
        return f"The untouched model says the key facts of {facts} of {texts} unseen texts: has it seen them?"
    return next((doubt[:1].upper() + doubt[1:] for doubt in run.manifest.get("unseen_doubts", [])), "")


def _reference(run: RunData, criteria: Criteria) -> str:
    """Whether a retrained model says clearly more of the texts than of unseen ones, or finds them more familiar."""
    theirs, after = run.scores.get("retrained", {}), run.scores.get("after", {})
    if run.reference != "retrained":
        return ""
    asks = "has it seen them, or are the unseen ones of another kind?"
    for name in ("exact_match", "key_fact"):
        forget, others = theirs.get(f"forget/{name}"), unseen(theirs, name) or unseen(after, name)
        if forget is None or not forget.known or others is None:  # some of which can be guessed
            continue
        sizes = [after.get(score.key, score).n or score.n or 0 for score in (forget, others)]
        chance = math.sqrt(forget.value * (1 - forget.value) * sum(1 / count for count in sizes if count))
        if forget.value - others.value > CLEARLY * (criteria.max_exact_match + chance):
            return f"The reference itself says {round(forget.value * sizes[0])} of the {sizes[0]} texts: {asks}"
    found = attacks(after)
    for key, score in found.items():
        known, pair = theirs.get(key), sides(score)
        if known is None or not known.known or not all(pair):
            continue
        bound = criteria.auc(chance_sd(*pair), attacks=attack_kinds(found))
        if known.value - bound.target > max(FAMILIAR, CLEARLY * bound.unit):
            pairs = f"{100 * known.value:.0f} of 100 pairs"
            return f"The reference itself finds a forgotten text more familiar than an unseen one in {pairs}: {asks}"
    return ""
