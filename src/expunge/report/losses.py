"""What the losses of a run say: of the texts to forget and to keep, and how far unseen ones have moved."""

from dataclasses import replace

from expunge.config.criteria import Criteria
from expunge.report.answers import UNTOUCHED, Answer, Number
from expunge.report.run_data import RunData
from expunge.report.scores import UNSEEN, number
from expunge.utils.coarse import TELLING, few
from expunge.utils.text import show_number

MARGIN = 0.1
"""Share of the value before beyond which a loss must be left out by the interval of the change, where a run's own
criteria do not allow more: so few texts may show none.
"""


def losses_of(run: RunData, name: str) -> tuple[float, float] | None:
    """The loss of a set before and after, where both are known."""
    pair = run.losses.get(name, {})
    before, after = number(pair.get("before")), number(pair.get("after"))
    return None if before is None or after is None else (before, after)


def exact_losses(run: RunData, name: str) -> tuple[float, float] | None:
    """`losses_of` a set that has not so few texts that they are told to half a nat alone."""
    return None if few({name: texts_of(run, name, TELLING)}) else losses_of(run, name)


def texts_of(run: RunData, name: str, unknown: int) -> int:
    """Texts of a set whose losses the manifest tells; `unknown` where it does not say how many."""
    texts: int = (run.manifest.get("loss_texts") or run.manifest.get("rows", {})).get(name, unknown)
    return texts


def drift_of(run: RunData, criteria: Criteria) -> list[Number]:
    """How far the loss of unseen texts moved: of the training's own, and of those in the results, the larger rise.

    A run is not reported on the texts that steered it, so the results before and after are compared where they are of
    as many texts, and only if what the adapter does to each text was not measured.
    """
    after = run.scores.get("after", {}).values()
    unseen = [
        score for score in after if score.set in UNSEEN and score.name.endswith("nll") and score.known and score.value
    ]
    drifts = [score for score in after if score.family == "drift" and score.target == 0 and score.known]
    pair = exact_losses(run, "holdout")
    changes = [("holdout/loss", *pair)] if pair and pair[0] > 0 else []
    for score in unseen:
        before = run.scores.get("before", {}).get(score.key)
        if drifts and score is unseen[0] and score.value > drifts[0].value:
            changes.append((drifts[0].key, score.value - drifts[0].value, score.value))
        elif not drifts and before and before.known and before.value and before.n == score.n:
            changes.append((score.key, before.value, score.value))
    if not changes:
        return []
    key, was, now = max(changes, key=lambda change: change[2] / change[1])
    change, bound = now / was - 1, criteria.drift()
    moved = f"{change:+.0%}" if abs(change) >= 0.005 else "less than 1%"
    says = f"the loss of texts that it has never seen moved by {moved} ({show_number(was)} to {show_number(now)})"
    found = Number(key, says, now, before=was, target=was, target_from=UNTOUCHED, excess=bound.excess(change))
    state, spread = "bad" if bound.violation(change) else "good", [score for score in drifts if score.bounded]
    if state == "bad" and any(score.key == key and score.low <= 0 for score in spread):
        state = "unclear"  # so few texts may not have moved at all
    most = max(MARGIN, criteria.max_drift)
    if state == "good" and unseen and any(score.high > most * (unseen[0].value - score.value) for score in spread):
        state = "unclear"  # or far
    return [replace(found, limit=f"rose by at most {criteria.max_drift:.0%}", state=state)]


def said_by_losses(run: RunData, answer: Answer) -> Answer:
    """Losses alone can show that nothing was forgotten, and never that something was."""
    pair, unseen = losses_of(run, "forget"), losses_of(run, "holdout")
    if pair is None:
        return replace(answer, says="no scores of the texts to forget")
    (before, after), aim = pair, unseen[0] if unseen else None
    says = f"the loss of the texts to forget went from {show_number(before)} to {show_number(after)}"
    says += "" if aim is None else f" ({show_number(aim)} on texts that it has never seen)"
    if aim is not None and before >= aim:
        return replace(answer, says=f"{says}: the model did not know them before either")
    if after - before <= (0.0 if aim is None else max(0.0, (aim - before) / 2)):
        return replace(answer, answer="yes", state="bad", says=says, need="", notes=("Judged by losses alone.",))
    return replace(answer, says=f"{says}, which alone proves nothing")
