"""The one set of success criteria: early stopping aims at it, calibration keeps to it and the verdict judges by it."""

import math
from dataclasses import dataclass, fields
from statistics import NormalDist

MET, NO_BETTER = "all criteria are met", "nothing has become better"
"""How the reason begins for which a run ended, where more steps would end there again, and where patience ended it."""
STRICT = 0.01
"""Least unit of a violation of what a run aims at, where a criterion allows next to nothing."""
TINY = 1e-9
"""The same of what is judged alone."""
WITHIN_ONE_SD = math.erf(math.sqrt(0.5))
"""Share of normal numbers that are within a standard deviation of their mean."""


@dataclass(frozen=True)
class Bound:
    """Where a number must lie, and what a miss is measured in.

    Attributes:
        target: What the number should come to.
        unit: Distance that counts as one.
        least: Smallest value that is good enough.
        most: Largest.
    """

    target: float
    unit: float
    least: float = -math.inf
    most: float = math.inf

    def violation(self, value: float) -> float:
        """How far a number is outside, in units; 0 where the criterion is met."""
        return max(0.0, self.least - value, value - self.most) / (self.unit or TINY)

    def excess(self, value: float) -> float:
        """How far it is from the target, in units, towards where it must not be."""
        away = value - self.target
        if math.isfinite(self.least):
            away = abs(away) if math.isfinite(self.most) else -away
        return away / (self.unit or TINY)


@dataclass(frozen=True)
class Criteria:
    """When unlearning counts as a success.

    Attributes:
        target_auc: Membership AUC (by loss, min-k and the like) of a model that never saw the forgotten texts: 0.5 by
            chance, or a retrained model's.
        auc_tolerance: Largest distance of an AUC from `target_auc`; what chance gives on as few texts where that is
            larger (`auc`).
        max_exact_match: Largest share of the forget completions that greedy decoding still says word for word, beyond
            the share of completions that it guesses though they were never seen.
        min_retain: Least share that every retain score keeps of what the untouched model has.
        max_drift: Largest relative rise of the loss of unseen texts. A fall is no damage: a retrained model has one,
            since a model that knew texts by heart is worse on others.
        max_repetition: Largest rise of the share of repeated four-grams in what is said, and of the share of prompts
            that are refused though they should be answered.
        max_left: Largest share of the way from the untouched model to a target that may be left on a metric of the
            forget set: a metric never comes to its target exactly, and a tenth is what texts differ by.
        significance: A test that tells the model from a retrained one counts below this p, shared among the tests.
    """

    target_auc: float = 0.5
    auc_tolerance: float = 0.05
    max_exact_match: float = 0.05
    min_retain: float = 0.98
    max_drift: float = 0.05
    max_repetition: float = 0.1
    max_left: float = 0.1
    significance: float = 0.05

    @property
    def laxer(self) -> list[str]:
        """Names of those that allow more than they do where nobody sets them, or aim at another AUC."""
        found = {field.name: getattr(self, field.name) - getattr(Criteria, field.name) for field in fields(self)}
        found |= {name: -found[name] for name in ("min_retain", "significance")}
        return [name for name, more in found.items() if more > 0 or (name == "target_auc" and more)]

    def auc(self, chance_sd: float, target: float | None = None, attacks: int = 1) -> Bound:
        """Of a membership AUC.

        One attack may be off by the standard deviation that chance gives, which 68 % of models that never saw the texts
        are not beyond. Of several, each may be off by as much as keeps that share for all of them together, were they
        independent (Sidak 1967): 1.9 standard deviations of six.

        Args:
            chance_sd: Standard deviation of an AUC of as many texts that nothing tells apart; where `target` is another
                model's AUC on the same texts, that of the difference of two such.
            target: A known model's AUC; `target_auc` when None.
            attacks: How many must be met together; 1 where each of several is judged by itself, as in training.
        """
        share = 0.5 + 0.5 * WITHIN_ONE_SD ** (1 / attacks)
        target = self.target_auc if target is None else target
        allowed = max(self.auc_tolerance, chance_sd * NormalDist().inv_cdf(share))
        return Bound(target, allowed, target - allowed, target + allowed)

    def exact_match(self, unseen: float) -> Bound:
        """Of the share of forget completions that are said; `unseen` is that of completions that were never seen."""
        return Bound(unseen, self.max_exact_match, most=unseen + self.max_exact_match)

    def retained(self, before: float = 1.0) -> Bound:
        """Of a retain score that the untouched model has as `before`."""
        return Bound(before, max(1 - self.min_retain, STRICT) * before, least=self.min_retain * before)

    def drift(self) -> Bound:
        """Of the relative change of the loss of unseen texts."""
        return Bound(0.0, max(self.max_drift, STRICT), most=self.max_drift)

    def left(self, target: float, start: float, *, counts_rows: bool) -> Bound:
        """Of a metric of the forget set that the untouched model has as `start`."""
        allowed = max(self.max_left * (start - target), self.max_exact_match * counts_rows)
        return Bound(target, max(allowed, TINY), most=target + allowed)

    def speech(self, target: float) -> Bound:
        """Of a share of what is said that should be small."""
        return Bound(target, max(self.max_repetition, TINY), most=target + self.max_repetition)
