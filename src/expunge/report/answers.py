"""Numbers and answers of the verdict: what each says, and how a number is judged by its criterion."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from expunge.config.criteria import Bound
from expunge.evaluation.estimate import ROUNDED
from expunge.report.scores import EXPOSURE, Score, spelled
from expunge.utils.coarse import ROUNDING
from expunge.utils.text import MISSING, show_number

PLAIN = {
    "key_fact_at": "key facts said in one of the answers that were drawn:",
    "key_fact": "key facts said:",
    "exact_match": "answers given word for word:",
    "leak_at": "texts said in one of the answers that were drawn:",
}
"""Beginnings of metrics that count rows: everybody understands them, and who has not read the texts gets 0."""
RETRAINED, UNTOUCHED, CHANCE = "a model retrained without the texts", "the untouched model", "chance"
ORIGIN = "the model from before it saw the texts"
NEVER_SEEN = "texts that it has never seen"
NONE = "a model that knows nothing of them"
GUESSED = (
    "What can be guessed from a question, as an address from a name, counts as said: neither unseen texts of the kind "
    "nor a retrained model were asked (--holdout, --reference)."
)
OWN_TARGET = "the run's own --target-auc"
STATES = ("bad", "unclear", "not measured", "good")
"""From the worst to the best."""
SOME_UNLIKE = "not judged: some are of kinds without unseen texts"
TO_SCORE = "Score the model before and after: `expunge evaluate --run RUN`."
OTHER_TARGET = (
    "Compare with texts of the same kind (--holdout), or a reference, that have certainly not seen the texts to forget."
)


@dataclass(frozen=True)
class Number:
    """One number behind an answer.

    Attributes:
        key: Its name in results files.
        says: The number in one clause.
        value: Of the unlearned model.
        low: Lower end of its 95 % interval; None where it is not known.
        high: Upper end.
        n: Rows behind it.
        before: Of the untouched model.
        target: What it was compared with.
        target_from: What the target is.
        limit: The criterion in words.
        state: `good`, `bad`, `unclear`, or `shown` for one that is not judged.
        excess: Distance from the target over what the criterion allows.
    """

    key: str
    says: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    before: float | None = None
    target: float | None = None
    target_from: str = ""
    limit: str = ""
    state: str = "shown"
    excess: float = 0.0


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Attributes:
        question: The question.
        answer: `yes`, `no`, `unclear` (measured, on too few texts to tell) or `not measured`.
        state: `good`, `bad`, `unclear` or `not measured`.
        says: The number that decides, in one clause.
        rule: The criterion.
        need: What to give so that it is measured; empty where it was.
        numbers: All numbers behind it, the farthest from its target first.
        notes: What else a reader must know.
    """

    question: str
    answer: str
    state: str
    says: str
    rule: str
    need: str = ""
    numbers: tuple[Number, ...] = ()
    notes: tuple[str, ...] = ()


def judged(score: Score, before: float | None, bound: Bound, whose: str, *, below: float = math.inf) -> Number:
    """A number with its criterion.

    A value outside the bound fails unless its interval reaches inside. One inside passes if its interval, where it has
    one, does not reach as far from the target, on either side, as the untouched model's value, here called `below`.
    One that is rounded, of few texts, is unclear where what it was rounded from can lie on the other side.
    """
    value, low, high = score.value, *((score.low, score.high) if score.bounded else (score.value, score.value))
    if ROUNDED in score.reason and len({bound.violation(value * by) == 0 for by in (ROUNDING, 1 / ROUNDING)}) > 1:
        state = "unclear"
    elif bound.violation(value) == 0:
        reach, target = abs(below - bound.target), bound.target
        above = low > target - reach or low >= bound.least
        state = "good" if above and (high < target + reach or high <= bound.most) else "unclear"
    else:
        state = "unclear" if low <= bound.most and high >= bound.least else "bad"
    ends = {"at least": bound.least, "at most": bound.most}
    limit = " and ".join(f"{text} {show_number(end)}" for text, end in ends.items() if math.isfinite(end))
    return replace(shown(score, before, bound.target, whose, limit), state=state, excess=bound.excess(value))


def shown(score: Score, before: float | None, target: float | None, whose: str, limit: str) -> Number:
    value = score.value
    low, high = (score.low, score.high) if score.bounded else (None, None)
    said, earlier, aim = (_plainly(score, number) for number in (value, before, target))
    notes = [f"{earlier} before"] if before is not None else []
    if target is not None and whose.startswith(NEVER_SEEN) and _is_count(score, value):
        notes.append(f"{target:.0%} of {whose}")  # other rows than these, and as many of each kind as here
    elif target is not None and whose not in (UNTOUCHED, NONE):
        notes.append(f"{aim} {'by' if whose in (CHANCE, OWN_TARGET) else 'for'} {whose}")
    says = f"{_named(score)} {said}" + (f" ({', '.join(notes)})" if notes else "")
    return Number(score.key, says, value, low, high, score.n, before, target, whose, limit)


def _named(score: Score) -> str:
    """A number as it is called in a sentence for everybody."""
    if score.name == EXPOSURE:
        return "after its own question a forgotten answer is likelier than another one of its form in"
    if score.family == "membership":
        attack = spelled(score.name.removesuffix("_auc"))
        return f"to the {attack} attack a forgotten text looks more familiar than an unseen one in"
    for beginning, words in PLAIN.items():
        if score.name.startswith(beginning):
            again = f"{score.task}{' questions' * (score.task == 'paraphrased')}, " if score.task else ""
            if score.name.endswith("_at_1"):
                words = f"{words.partition(' said')[0]} said in a single drawn answer, on average:"
            return again + (words if score.set == "forget" else f"{score.set}, {words}")
    return score.label


def _plainly(score: Score, value: float | None) -> str:
    """A share of rows as their number where it is one (a mean over draws, or of other rows, need not be), an AUC as so
    many of 100 pairs; 50 are those of who knows nothing.
    """
    if value is None:
        return MISSING
    if score.family == "membership" or score.name == EXPOSURE:
        return f"{100 * value:.0f} of 100 pairs" if value is score.value else f"{100 * value:.0f}"
    if not _is_count(score, value):
        return show_number(value)
    rows = f"{round(value * (score.n or 0)):,}"
    return f"{rows} of {score.n:,}" if value is score.value else rows


def _is_count(score: Score, value: float) -> bool:
    """Whether a value is a share of the score's rows that is a whole number of them."""
    rows = value * (score.n or 0)
    return bool(score.n) and score.name.startswith(tuple(PLAIN)) and abs(rows - round(rows)) < 1e-9


def answered(
    question: str,
    words: tuple[str, str],
    numbers: Sequence[Number],
    rule: str,
    notes: Sequence[str] = (),
    doubts: Mapping[str, str] | None = None,
) -> Answer:
    """One bad number decides; then one that is unclear; else all are good. Several numbers are counted.

    What is good by a target that is doubted (what it is -> why) is unclear.
    """
    doubted = [number for number in numbers if number.state == "good" and number.target_from in (doubts or {})]
    numbers = [replace(number, state="unclear") if number in doubted else number for number in numbers]
    counted = [number for number in numbers if number.state != "shown"]
    state = min((number.state for number in counted), key=STATES.index)
    deciding = [number for number in counted if number.state == state]
    plain = (
        [number for number in deciding if number.key.split("/")[-1].startswith(tuple(PLAIN))] if state == "good" else []
    )
    says = max(plain or deciding, key=lambda number: number.excess).says
    if len(counted) > 1:
        says += f"; {_counts([number.state for number in counted])}"
    need = f"{question} Too few texts to tell, the interval is wide: measure on more." if state == "unclear" else ""
    need = OTHER_TARGET if doubted and need else need
    ordered = tuple(sorted(numbers, key=lambda number: -number.excess))
    answer = {"bad": words[0], "good": words[1]}.get(state, state)
    return Answer(question, answer, state, says, rule, need, ordered, tuple(notes))


def _counts(states: Sequence[str]) -> str:
    """How many numbers are bad, unclear and good, the worst first."""
    kinds = [(state, states.count(state)) for state in STATES if state in states]
    if len(kinds) == 1:
        every = "both" if len(states) == 2 else f"all {len(states)}"
        return f"{every} numbers {'are unclear' if kinds[0][0] == 'unclear' else 'say so'}"
    (worst, count), *others = kinds
    head = f"{count} of {len(states)} numbers {'is' if count == 1 else 'are'} {worst}"
    return ", ".join([head, *(f"{number} {state}" for state, number in others)])
