"""Validation metrics: what an adapter is judged by while a run goes on, and how far that is from the criteria.

Teacher-forced metrics alone, on the selection half of the documents and a part of the other rows, so that an
evaluation step takes seconds: whether a membership attack tells forgotten texts from unseen ones, what of the forget
set is still said, what the retain set has kept, and how far the loss of unseen texts has moved.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from statistics import fmean

from peft.helpers import rescale_adapter_scale
from torch import Tensor

from expunge.config.criteria import Criteria
from expunge.data.chat import end_ids
from expunge.data.holdout import FEWEST
from expunge.data.tokenize import TokenizedExample, evenly, leading_ids
from expunge.model.load import LoadedModel
from expunge.model.logps import sequence_logps
from expunge.utils.distributed import ALONE, Processes
from expunge.utils.roc import auc, chance_sd

TAIL = 0.2
"""Share of a text's tokens that min-k averages."""
RETAIN_ROWS, FORGET_ROWS = 128, 96
"""Rows whose completions are evaluated, evenly from all of them."""
CERTAIN = 0.5
"""Retain completions that the untouched model says at least so surely can be lost."""
TELLING = 5
"""Fewest tokens of a completion that nobody says word for word by chance, where no other text has the same."""


@dataclass(frozen=True)
class ValidationRows:
    """Texts that an adapter is judged on.

    Attributes:
        members: Texts that are to be forgotten.
        nonmembers: Texts like them that the model has never seen.
        retain: Texts to keep.
        forget: Texts to forget whose completions are looked for.
        short: Unseen texts too short for a membership attack, which say what can be guessed of others like them.
        others: All texts to keep and to forget: what one of them has, too, can be guessed.
    """

    members: list[TokenizedExample]
    nonmembers: list[TokenizedExample]
    retain: list[TokenizedExample]
    forget: list[TokenizedExample]
    short: list[TokenizedExample] = field(default_factory=list)
    others: Sequence[TokenizedExample] = ()

    @classmethod
    def of(
        cls,
        members: list[TokenizedExample],
        nonmembers: list[TokenizedExample],
        retain: Sequence[TokenizedExample],
        forget: Sequence[TokenizedExample],
        short: Sequence[TokenizedExample] = (),
    ) -> "ValidationRows":
        """All members and non-members, and of the other sets as many rows as are evaluated."""
        some = evenly(retain, RETAIN_ROWS), evenly(forget, FORGET_ROWS), evenly(short, FORGET_ROWS)
        return cls(members, nonmembers, *some, others=[*retain, *forget])

    @property
    def sides(self) -> tuple[list[TokenizedExample], ...]:
        """Members, non-members, texts to keep, to forget, and short unseen ones."""
        return self.members, self.nonmembers, self.retain, self.forget, self.short

    @property
    def all(self) -> list[TokenizedExample]:
        """All rows, side by side."""
        return [row for side in self.sides for row in side]


@dataclass(frozen=True)
class Validation:
    """What an adapter at one scale does on the validation rows.

    Attributes:
        scale: Factor on the adapter; 0 is the untouched model.
        auc: P(a member has a lower mean NLL than a non-member) + 0.5 P(equal).
        min_k_auc: The same of the mean NLL of the fifth of a text's tokens that are least likely (min-k).
        auc_sd: Standard deviation of an AUC of as many texts that nothing tells apart (Mann and Whitney 1947).
        forget_nll: Mean over members of their NLL per token, nats.
        unseen_nll: Mean over non-members.
        exact_match: Mean over the forget completions of how surely greedy decoding says them (`certainty`).
        unseen_exact_match: The same of unseen texts of the same kinds: what can be guessed.
        retained: Least of two shares of the untouched model's: the mean probability of the retain completions, and what
            greedy decoding still says of those that it said; 1 without retain texts.
        drift: Relative change of `unseen_nll`.
    """

    scale: float
    auc: float
    min_k_auc: float
    auc_sd: float
    forget_nll: float
    unseen_nll: float
    exact_match: float
    unseen_exact_match: float
    retained: float
    drift: float


class Validator:
    """Validation metrics of any scale, a forward pass over the validation rows each.

    Args:
        loaded: The model with its adapter, without which it is measured at once.
        rows: What to evaluate; members and non-members at least one each.
        processes: Those that share the forward passes.

    Attributes:
        untouched: Metrics of the model without its adapter.
        unseen_said: How many unseen texts that model certainly says word for word, and of how many (`said`).
    """

    def __init__(self, loaded: LoadedModel, rows: ValidationRows, processes: Processes = ALONE) -> None:
        self.loaded, self.rows, self._processes = loaded, rows, processes
        self._ends = end_ids(loaded.tokenizer)
        before = self._pass(0.0)
        self._certain = certainty(rows.retain, before[2], self._ends)
        self._probability = _mean(probabilities(rows.retain, before[2]))
        self._unseen_nll = -fmean(map(_mean_logp, before[1]))
        self.untouched = self._metrics(0.0, before)
        begun = len(leading_ids(loaded.tokenizer))
        self.unseen_said = by_heart(rows.nonmembers, before[1], rows.others, begun, self._ends)

    def at(self, scale: float) -> Validation:
        """Metrics of one scale."""
        return self._metrics(scale, self._pass(scale))

    def _pass(self, scale: float) -> list[list[Tensor]]:
        """Log-probabilities of the tokens of each side's texts."""
        with rescale_adapter_scale(self.loaded.model, scale):
            ids = [row.input_ids for row in self.rows.all]
            logps = iter(sequence_logps(self.loaded, ids, processes=self._processes))
        return [list(islice(logps, len(side))) for side in self.rows.sides]

    def _metrics(self, scale: float, logps: list[list[Tensor]]) -> Validation:
        members, nonmembers, retain, forget, short = logps
        means, tails = ([[f(values) for values in side] for side in (members, nonmembers)] for f in (_mean_logp, _tail))
        unseen = -fmean(means[1])
        return Validation(
            scale=scale,
            auc=auc(*means),
            min_k_auc=auc(*tails),
            auc_sd=chance_sd(len(members), len(nonmembers)),
            forget_nll=-fmean(means[0]),
            unseen_nll=unseen,
            exact_match=_mean(certainty(self.rows.forget, forget, self._ends)),
            unseen_exact_match=self._guessed([*nonmembers, *short]),
            retained=self._retained(retain),
            drift=unseen / self._unseen_nll - 1,
        )

    def _guessed(self, logps: list[Tensor]) -> float:
        """See `Validation.unseen_exact_match`; of kinds of fewer than `FEWEST` unseen texts what is guessed of all."""
        rows = [*self.rows.nonmembers, *self.rows.short]
        found, of = certainty(rows, logps, self._ends), defaultdict[str, list[float]](list)
        for row, value in zip(rows, found, strict=True):
            of[row.group].append(value)
        known = {kind: values for kind, values in of.items() if len(values) >= FEWEST}
        return _mean([_mean(known.get(row.group, found)) for row in self.rows.forget])

    def _retained(self, logps: list[Tensor]) -> float:
        """See `Validation.retained`; what rows of one group gain does not make up for what those of others lose."""
        rows = self.rows.retain
        if not rows:
            return 1.0
        falls: dict[str, float] = {}
        for row, before, now in zip(rows, self._certain, certainty(rows, logps, self._ends), strict=True):
            if before >= CERTAIN:
                falls[row.group] = falls.get(row.group, 0.0) + before - now
        lost = sum(max(0.0, fall) for fall in falls.values())
        said = sum(before for before in self._certain if before >= CERTAIN)
        return min(_mean(probabilities(rows, logps)) / self._probability, 1 - lost / said if said else 1.0)


def targets(untouched: Validation, criteria: Criteria) -> dict[str, float]:
    """What a metric should come to, or the bound that it should keep."""
    return {
        "auc": criteria.target_auc,
        "min_k_auc": criteria.target_auc,
        "forget_nll": untouched.unseen_nll,
        "unseen_nll": untouched.unseen_nll,
        "exact_match": criteria.exact_match(untouched.unseen_exact_match).most,
        "retained": criteria.min_retain,
        "drift": criteria.max_drift,
    }


def violations(metrics: Validation, untouched: Validation, criteria: Criteria) -> dict[str, float]:
    """How far an adapter is from each criterion, in tolerances of it: 0 where it is met.

    A membership AUC stays at 1 while texts known by heart become less likely, so what their NLL lacks counts too, as
    long as the AUC is too high.
    """
    auc_bound, drift = criteria.auc(untouched.auc_sd), criteria.drift()
    lacking = 1 - metrics.forget_nll / untouched.unseen_nll if metrics.auc > auc_bound.most else 0.0
    return {
        "auc": auc_bound.violation(metrics.auc),
        "min_k_auc": auc_bound.violation(metrics.min_k_auc),
        "forget_nll": max(0.0, lacking) / drift.unit,
        "exact_match": criteria.exact_match(untouched.unseen_exact_match).violation(metrics.exact_match),
        "retained": criteria.retained().violation(metrics.retained),
        "drift": drift.violation(metrics.drift),
    }


def violation(metrics: Validation, untouched: Validation, criteria: Criteria) -> float:
    """The sum of the violations: 0 is success."""
    return sum(violations(metrics, untouched, criteria).values())


def probabilities(rows: Sequence[TokenizedExample], logps: Sequence[Tensor]) -> list[float]:
    """Probability of each row's completion, length-normalised: exp of minus its NLL per token.

    Log-probabilities are `(tokens - 1,)` for each row, as `sequence_logps` gives them.
    """
    pairs = zip(rows, logps, strict=True)
    return [math.exp(values[row.targets("completion").start - 1 :].mean().item()) for row, values in pairs]


def certainty(rows: Sequence[TokenizedExample], logps: Sequence[Tensor], ends: Collection[int] = ()) -> list[float]:
    """How surely greedy decoding says each row's completion, from 0 to 1: a smooth exact match.

    Twice the probability of its least likely token, at most 1: a token of more than a half is the one that is said, and
    with a single other one the text goes another way, which the mean over a long completion hardly shows. A completion
    is said up to the first of the tokens that end an answer, `ends`; log-probabilities are as for `probabilities`.
    """

    def least(row: TokenizedExample, values: Tensor) -> float:
        spoken = row.spoken(ends)
        return values[spoken.start - 1 : spoken.stop - 1].min().item()

    return [min(1.0, 2 * math.exp(least(row, values))) for row, values in zip(rows, logps, strict=True)]


def by_heart(
    rows: Sequence[TokenizedExample],
    logps: Sequence[Tensor],
    others: Sequence[TokenizedExample],
    begun: int,
    ends: Collection[int] = (),
) -> tuple[int, int]:
    """How many rows greedy decoding says word for word, since each token has more than a half; and of how many.

    Completions that cannot be guessed count alone: of `TELLING` tokens and more that their prompts do not have, and
    that no other row says after its own; so yes, no, the name of a category and a template's sentence do not. Of a text
    without a prompt (of more than `begun` tokens) it is the second half.
    """

    def new(row: TokenizedExample) -> tuple[int, ...]:
        known = {*row.input_ids[: row.completion_start]}
        return tuple(row.input_ids[at] for at in row.spoken(ends) if row.input_ids[at] not in known)

    asked = [row if row.completion_start > begun else replace(row, completion_start=len(row) // 2) for row in rows]
    times = Counter(map(new, (*asked, *others)))
    sure = zip(asked, certainty(asked, logps, ends), strict=True)
    telling = [value for row, value in sure if len(new(row)) >= TELLING and times[new(row)] == 1]
    return telling.count(1.0), len(telling)


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


def _mean_logp(logps: Tensor) -> float:
    return logps.mean().item()


def _tail(logps: Tensor) -> float:
    """Mean log-probability of the least likely fifth of a text's tokens (min-k, Shi et al. 2024, 2310.16789)."""
    return logps.topk(max(1, int(TAIL * len(logps))), largest=False).values.mean().item()
