"""What steers a run that follows unseen texts: how hard, deep and evenly its next step pushes, and when it ends.

All of it is a function of the looks so far, so that a resumed run takes the steps of one that was not interrupted.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from expunge.config.criteria import Goal
from expunge.train.validation import (
    REACHED,
    RETAIN_ROWS,
    TOLERANCES,
    Signals,
    depth,
    drifted,
    evenness,
    kept,
    lack,
    oversaid,
)

NEAR = 0.15
"""AUC and evenness correct depth and beta where forgotten texts lack less of the depth than this share, else not."""
DEEPER, DEEPER_NOW, LEAST_DEPTH, MOST_DEPTH = 0.05, 0.3, 0.6, 1.6
"""Change of the depth, as a share, per unit of AUC that is missing: at every look for good, and while it is missing;
bounds of what has come together."""
EVENER, EVENER_NOW, LEAST_BETA, MOST_BETA = 0.5, 4.0, -1.0, 2.0
"""The same of beta, down by how much too evenly the loss of forgotten texts is spread."""
RANKED = 0.1
"""What a unit of min-k AUC above that by loss counts as, in evenness."""
PRESSING, MOST_PRESSURE = 0.12, 8.0
"""Change of the logarithm of NPO's weight at a look per unit of membership AUC that is missing; bound of its factor."""
KEEPING, LEAST_KEPT, MOST_KEPT_EARLY, MOST_KEPT = 0.2, 1 / 4, 3.0, 16.0
"""The same of the retain terms' weight, where the retain set lacks as much again as it may lose, or more; back by as
much where it has lost nothing; bounds, of which the second holds on the way to the depth."""
INSISTING, OFTEN, MOST_INSISTENCE = 0.3, 0.05, 16.0
"""The same of how much harder completions are pushed that are still said, where so large a share of all is said beyond
what may be, or more; bound."""
PULLING = 2.0
"""Push backwards beyond the depth, as a share of the whole, per unit of membership AUC below its target."""
HOLDING, LOOSEST, TIGHTEST = 4.0, 1 / 16, 4.0
"""The same of the anchors' weight, per unit of drift that is too much; bounds of its factor."""
LOSS, DRIFT = 0.3, 0.8
"""The retain set and the drift are steered to these shares of what their bounds allow; the retain set may always lose
one row."""
PATIENCE, PATIENT_STEPS, SLOWING, SLOWEST = 4, 36, 0.5, 0.1
"""Looks at the depth, and steps, without a better look after which the learning rate falls; the factor on it, and the
factor below which the run ends. The AUC swings around its target, and one of its swings takes about twenty steps."""


@dataclass(frozen=True)
class Look:
    """The steps before it, the shortfall, and the signals that it was counted from."""

    step: int
    missing: float
    signals: Signals


@dataclass
class Course:
    """The looks of a run, and what follows from them.

    Attributes:
        untouched: Signals of the untouched model.
        goal: What to reach.
        looks: In the order of their steps.
        pace: Steps between looks, over those that are usual: what follows from a look counts that much.
        rows: Retain rows that are looked at.
    """

    untouched: Signals
    goal: Goal
    looks: list[Look] = field(default_factory=list)
    pace: float = 1.0
    rows: int = RETAIN_ROWS

    @property
    def depth(self) -> float:
        """Mean loss that a forgotten text should have (nats per token), by the unseen ones at the last look, corrected.

        Texts of the same mean loss are still told apart where other terms pull some of them back or push them on, so
        the membership AUC corrects it.
        """
        errors = self._near(lambda signals: signals.auc - self.goal.auc)
        last = self.looks[-1].signals if self.looks else self.untouched
        correction = _corrected(1.0, errors, self.pace * DEEPER, DEEPER_NOW, LEAST_DEPTH, MOST_DEPTH)
        return depth(last, self.goal, self._most) * correction

    def beta(self, start: float) -> float:
        """NPO's beta, which begins as `start`.

        The larger it is, the less are tokens pushed that are unlikely already, and the more evenly a text's loss is
        spread; below 0 those are pushed most. An attack by a text's least likely tokens sees it: a loss that is spread
        more evenly than that of unseen texts asks for a smaller beta, a less even one for a larger. The mean over texts
        says so long before the ranks of single texts do, and these say it where the mean is right.
        """
        errors = self._near(lambda own: -evenness(own) - RANKED * (own.min_k_auc - own.auc))
        return _corrected(start, errors, self.pace * EVENER, EVENER_NOW, LEAST_BETA, MOST_BETA)

    @property
    def pressure(self) -> float:
        """Factor on NPO's weight, the multiplier of the membership AUC.

        How much of it a model takes is not known beforehand: too little, and it comes to rest before the depth, where
        what holds it in place is as strong. So the weight grows while the forgotten texts are told from unseen ones.
        """
        changes = (self.pace * PRESSING * (look.signals.auc - self.goal.auc) for look in self.looks)
        return _multiplier(changes, 1 / MOST_PRESSURE, MOST_PRESSURE)

    @property
    def pull(self) -> float:
        """Most of a push backwards that a text has which is beyond the depth.

        Shared weights carry a text on that is no longer pushed; what pulls it back, the retain terms and the anchors,
        does so slowly. So while the forgotten texts are less likely than unseen ones, those beyond it are pulled.
        """
        last = self.looks[-1].signals.auc if self.looks else 1.0
        return min(1.0, PULLING * max(0.0, self.goal.auc - last))

    @property
    def insistence(self) -> float:
        """Factor on the push of completions that are said for certain, the multiplier of what is still said.

        Short answers weigh next to nothing in a mean over tokens, and the retain terms and the anchors keep alive what
        is like them; the membership AUC, which reads documents, does not see them.
        """
        said = [oversaid(look.signals, self.untouched) for look in self.looks]
        return self._settled([INSISTING * _bounded(own / OFTEN) for own in said], 1.0, 1.0, MOST_INSISTENCE)

    @property
    def keep(self) -> float:
        """Factor on the weights of the retain terms, the multiplier of the floor.

        On the way to the depth the retain set is always short of it, and comes back there. So until then these weights
        are bounded: held too tight, a run never arrives; not at all, it arrives with a model that takes long to heal.
        """
        allowed = max(LOSS * (1 - self.goal.retain), 1 / max(1, self.rows))
        lost = [1 - kept(look.signals, self.untouched) for look in self.looks]
        changes = [KEEPING * _bounded(own / allowed - 1) for own in lost]
        return self._settled(changes, LEAST_KEPT, MOST_KEPT_EARLY, MOST_KEPT)

    @property
    def hold(self) -> float:
        """Factor on the weight of the anchors, the multiplier of the ceiling on drift.

        Anchors keep the loss of unseen texts where it was, and keep alive what is like them, short answers above all.
        So they weigh less while the unseen texts stay far below the ceiling, and more where these come near it.
        """
        wanted = DRIFT * self.goal.drift
        return self._settled(
            [HOLDING * (max(0.0, drifted(look.signals, self.untouched)) - wanted) for look in self.looks],
            LOOSEST,
            1.0,
            TIGHTEST,
        )

    @property
    def rate(self) -> float:
        """Factor on the learning rate: the peak on the way and while looks get better, half of it where they do not.

        A constant rate swings around the goal for ever, and one that falls by a clock falls too early or too late.
        """
        arrived, least, falls = self.arrived, float("inf"), 0
        waited, since = 0, 0
        patience = max(1, round(PATIENCE / self.pace))
        for look in self.looks:
            if arrived is None or look.step < arrived:
                continue
            waited += 1
            if look.missing < least:
                least, waited, since = look.missing, 0, look.step
            elif waited >= patience and look.step - since >= PATIENT_STEPS:
                waited, since, falls = 0, look.step, falls + 1
        return SLOWING**falls

    @property
    def arrived(self) -> int | None:
        """Steps after which the forgotten texts had come to the depth, by their loss or by the membership AUC."""
        for look in self.looks:
            signals = look.signals
            if signals.auc <= self.goal.auc + TOLERANCES["auc"] or self._lack(signals) <= TOLERANCES["depth"]:
                return look.step
        return None

    @property
    def best(self) -> Look | None:
        """The last of the looks that lack the least."""
        return min(reversed(self.looks), key=lambda look: look.missing, default=None)

    @property
    def over(self) -> str | None:
        """Why the run should end now; None where it should not."""
        best = self.best
        if best is None:
            return None
        if self.arrived is not None and self.looks[-1].missing < REACHED:
            return f"the goal is reached at step {self.looks[-1].step}"
        return f"nothing has become better since step {best.step}" if self.rate < SLOWEST else None

    @property
    def reason(self) -> str:
        """Why a run that is over has stopped."""
        if self.arrived is None:
            return "all steps are done; the forgotten texts never came to the depth of unseen ones"
        there = f"the forgotten texts came to the depth of unseen ones at step {self.arrived}"
        return f"{there}; {self.over or 'all steps are done'}"

    def _settled(self, changes: Sequence[float], least: float, most_early: float, most: float) -> float:
        """A multiplier that has another bound, `most_early`, before the depth is reached."""
        arrived = self.arrived
        early = sum(arrived is None or look.step < arrived for look in self.looks)
        paced = [self.pace * change for change in changes]
        on_the_way = _multiplier(paced[:early], least, most_early)
        return _multiplier(paced[early:], least, most, start=on_the_way)

    def _near(self, error: Callable[[Signals], float]) -> list[float]:
        """What is missing at each look; nothing where the forgotten texts are not near the depth."""
        return [error(look.signals) if self._lack(look.signals) < NEAR else 0.0 for look in self.looks]

    def _lack(self, signals: Signals) -> float:
        return lack(signals, self.goal, self._most)

    @property
    def _most(self) -> float:
        """Largest loss of unseen texts that the depth follows.

        Beyond it they have drifted: forgotten texts that are pushed further take them along, further still.
        """
        return self.untouched.holdout_nll * (1 + DRIFT * self.goal.drift)


def _bounded(value: float) -> float:
    return min(1.0, max(-1.0, value))


def _corrected(start: float, errors: Iterable[float], gain: float, now: float, least: float, most: float) -> float:
    """`start`, changed for good by every error, kept within bounds, and for now by the last (a PI controller)."""
    total, last = start, 0.0
    for last in errors:
        total = min(most, max(least, total + gain * last))
    return total + now * last


def _multiplier(changes: Iterable[float], least: float, most: float, start: float = 1.0) -> float:
    """`start`, its logarithm changed again and again, and kept within bounds after each change."""
    total = math.log(start)
    for change in changes:
        total = min(math.log(most), max(math.log(least), total + change))
    return math.exp(total)
