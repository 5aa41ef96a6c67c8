"""What is looked at to judge an adapter, at any strength, and how far that is from the goal.

Teacher-forced signals alone, so a look takes seconds: whether a membership attack by loss tells forgotten texts from
texts that were never seen, what of the forget set is still said, what the retain set has kept, and how far the loss of
unseen texts has moved.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import NormalDist, fmean, pstdev

import torch
from torch import Tensor

from expunge.config.criteria import Goal
from expunge.data.tokenize import TokenizedExample
from expunge.model.adapter import scaled
from expunge.model.load import LoadedModel
from expunge.model.logps import sequence_logps
from expunge.utils.distributed import ALONE, Processes
from expunge.utils.roc import auc

TAIL = 0.2
"""Share of a text's tokens that min-k looks at."""
RETAIN_ROWS, FORGET_ROWS = 256, 128
"""Rows whose completions are looked at, evenly from all of them."""
TOLERANCES = {"auc": 0.05, "min_k": 0.05, "depth": 0.05, "said": 0.02, "retain": 0.01, "drift": 0.05}
"""What a shortfall is counted in; AUCs and a depth are reached within one of them."""
SAFE = 0.9
"""Share of the ceiling on drift that a shortfall is counted from."""
LEAST_SHARE = 0.1
"""Least depth, whatever the goal, as a share of the unseen texts' loss."""
SAID = 0.03
"""Share of the forget completions that may be said still (what can be guessed counts a little); more where more of the
unseen texts' can be guessed."""
CERTAIN = 0.5
"""Least certainty of a retain completion that the untouched model says."""
REACHED = 0.1
"""A shortfall of less, in tolerances, counts as the goal."""


@dataclass(frozen=True)
class Selection:
    """Texts that a scale is chosen on.

    Attributes:
        members: Texts that are to be forgotten.
        nonmembers: Texts like them that the model has never seen.
        retain: Texts to keep.
        forget: Texts to forget whose completions are looked at.
    """

    members: list[TokenizedExample]
    nonmembers: list[TokenizedExample]
    retain: list[TokenizedExample]
    forget: list[TokenizedExample]

    @classmethod
    def of(
        cls,
        members: list[TokenizedExample],
        nonmembers: list[TokenizedExample],
        retain: Sequence[TokenizedExample],
        forget: Sequence[TokenizedExample],
    ) -> "Selection":
        """All members and non-members, and of the retain and forget set as many rows as are looked at."""
        return cls(members, nonmembers, evenly(retain, RETAIN_ROWS), evenly(forget, FORGET_ROWS))


@dataclass(frozen=True)
class Signals:
    """What one scale does on the selection.

    Attributes:
        scale: Factor on the adapter; 0 is the untouched model.
        auc: P(a member has a lower mean loss than a non-member) + 0.5 P(equal).
        forget_nll: Mean over members of their loss per token, nats.
        holdout_nll: Mean over non-members.
        retain: Mean probability of the retain completions (length-normalised, exp of minus the loss per token).
        min_k_auc: Like `auc`, of the mean loss of the fifth of a text's tokens that are least likely.
        forget_tail: Mean over members of that loss, nats.
        holdout_tail: Mean over non-members.
        holdout_sd: Standard deviation of the non-members' loss per token, nats.
        lost: Share of all retain completions that greedy decoding has said and says no longer: how much of their
            `certainty` is gone since the untouched model, of those that it has said. What rows of one group (task and
            kind) gain does not make up for what others lose, nor what was not said before for what was.
        said: Mean `certainty` of the forget completions: about the share of them that greedy decoding says.
        guessed: The same of the non-members.
        auc_sd: Standard deviation of the AUC of as many texts that nothing tells apart (Mann and Whitney 1947).
    """

    scale: float
    auc: float
    forget_nll: float
    holdout_nll: float
    retain: float
    min_k_auc: float = 0.5
    forget_tail: float = 0.0
    holdout_tail: float = 0.0
    holdout_sd: float = 0.0
    lost: float = 0.0
    said: float = 0.0
    guessed: float = 0.0
    auc_sd: float = 0.0


def evenly(rows: Sequence[TokenizedExample], most: int) -> list[TokenizedExample]:
    """At most `most` rows, evenly from all groups and from the whole of each."""
    count, ordered = min(most, len(rows)), sorted(rows, key=lambda own: own.group)
    return [ordered[at * len(rows) // count] for at in range(count)]


class Meter:
    """Signals of any scale on one selection, a forward pass over it each.

    Args:
        loaded: The model with its adapter, without which it is measured at once.
        selection: What to look at; members and non-members at least one each.
        processes: Those that share the forward passes.

    Attributes:
        untouched: Signals of the model without its adapter.
        holdout_logps: Its log-probabilities of the non-members' tokens, `(tokens - 1,)` each.
    """

    def __init__(self, loaded: LoadedModel, selection: Selection, processes: Processes = ALONE) -> None:
        self.loaded, self.selection, self._processes = loaded, selection, processes
        _, self.holdout_logps, retain, _ = before = self._pass(0.0)
        self._certain = self._certainty(selection.retain, retain)
        self.untouched = self._signals(0.0, *before)

    def at(self, scale: float) -> Signals:
        """Signals of one scale."""
        return self._signals(scale, *self._pass(scale))

    def _pass(self, scale: float) -> list[list[Tensor]]:
        """Log-probabilities of the tokens of members, non-members, retain and forget texts."""
        own = self.selection
        sides = (own.members, own.nonmembers, own.retain, own.forget)
        with scaled(self.loaded.model, scale):
            ids = [row.input_ids for side in sides for row in side]
            logps = iter(sequence_logps(self.loaded, ids, processes=self._processes))
        return [list(islice(logps, len(side))) for side in sides]

    def _certainty(self, rows: list[TokenizedExample], logps: list[Tensor]) -> list[float]:
        return certainty(rows, logps, end=self.loaded.tokenizer.eos_token_id)

    def _signals(
        self,
        scale: float,
        members: list[Tensor],
        nonmembers: list[Tensor],
        retain: list[Tensor],
        forget: list[Tensor],
    ) -> Signals:
        means, tails = ([[f(own) for own in side] for side in (members, nonmembers)] for f in (_mean_logp, _tail))
        falls: dict[str, float] = {}
        for row, before, now in zip(
            self.selection.retain, self._certain, self._certainty(self.selection.retain, retain), strict=True
        ):
            if before >= CERTAIN:
                falls[row.group] = falls.get(row.group, 0.0) + before - now
        return Signals(
            scale,
            auc(*means),
            -fmean(means[0]),
            -fmean(means[1]),
            _mean(probabilities(self.selection.retain, retain)),
            auc(*tails),
            -fmean(tails[0]),
            -fmean(tails[1]),
            pstdev(means[1]),
            sum(max(0.0, fall) for fall in falls.values()) / max(1, len(retain)),
            _mean(self._certainty(self.selection.forget, forget)),
            _mean(self._certainty(self.selection.nonmembers, nonmembers)),
            math.sqrt((len(members) + len(nonmembers) + 1) / (12 * len(members) * len(nonmembers))),
        )


def relative_losses(texts: Sequence[TokenizedExample], logps: Sequence[Tensor], vocabulary: int) -> Tensor:
    """How unlikely the untouched model finds each token of the vocabulary in unseen texts.

    The mean loss of the token wherever it stands in them, over the mean of all tokens. Tokens that are rare in them
    are drawn towards the mean of those that stand there once, which counts as one more place of each.

    Args:
        texts: Unseen texts, at least one token beside the first.
        logps: `(tokens - 1,)` for each of them, of the untouched model.
        vocabulary: Rows of the embedding.

    Returns:
        `(vocabulary,)`, on the CPU.
    """
    losses = -torch.cat(list(logps))
    ids = torch.cat([torch.tensor(row.input_ids[1:]) for row in texts])
    counts = ids.bincount(minlength=vocabulary)
    once = losses[counts[ids] == 1]
    rare = once.mean() if len(once) else losses.mean()
    means = (torch.zeros(len(counts)).index_add(0, ids, losses) + rare) / (counts + 1)
    return means / means[ids].mean().clamp(min=torch.finfo().tiny)


def probabilities(rows: Sequence[TokenizedExample], logps: Sequence[Tensor]) -> list[float]:
    """Probability of each row's completion, length-normalised: exp of minus its loss per token.

    Args:
        rows: The texts.
        logps: `(tokens - 1,)` for each of them, as `sequence_logps` gives them.
    """
    pairs = zip(rows, logps, strict=True)
    return [math.exp(own[row.targets("completion").start - 1 :].mean().item()) for row, own in pairs]


def certainty(rows: Sequence[TokenizedExample], logps: Sequence[Tensor], end: int | None = None) -> list[float]:
    """How surely greedy decoding says each row's completion, from 0 to 1.

    Twice the probability of its least likely token, at most 1: a token of more than a half is the one that is said, and
    with a single other one the text goes another way, which the mean over a long completion hardly shows.

    Args:
        rows: The texts.
        logps: `(tokens - 1,)` for each of them, as `sequence_logps` gives them.
        end: The end-of-text token, with which a completion is said.
    """

    def least(row: TokenizedExample, own: Tensor) -> float:
        spoken = row.spoken(end)
        return own[spoken.start - 1 : spoken.stop - 1].min().item()

    return [min(1.0, 2 * math.exp(least(row, own))) for row, own in zip(rows, logps, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


def _mean_logp(logps: Tensor) -> float:
    return logps.mean().item()


def _tail(logps: Tensor) -> float:
    """Mean log-probability of the least likely fifth of a text's tokens (min-k, Shi et al. 2024, 2310.16789)."""
    return logps.topk(max(1, int(TAIL * len(logps))), largest=False).values.mean().item()


def passed_bounds(signals: Signals, untouched: Signals, goal: Goal) -> list[str]:
    """The bounds that a scale passes, in words."""
    passed = []
    share, drift = kept(signals, untouched), abs(drifted(signals, untouched))
    if share < goal.retain:
        passed.append(f"keeps {share:.1%} of the retain set (floor {goal.retain:.1%})")
    if drift > goal.drift:
        passed.append(f"moves the loss of the unseen selection texts by {drift:.1%} (ceiling {goal.drift:.1%})")
    return passed


def shortfall(signals: Signals, untouched: Signals, goal: Goal) -> float:
    """How much is missing: the sum, over six aims, of what is missing beyond the tolerance, in tolerances.

    The aims are the membership AUC by loss and by min-k, the depth of the forgotten texts (as a share of it), that they
    are no longer said, the floor of the retain set and the ceiling of the drift, of which `SAFE` is aimed at, so that
    it holds on texts that are not looked at. 0 is the goal. AUCs beyond their tolerance count in no less than their
    standard deviation by chance: on few texts they jump.
    """
    missing = {
        "auc": abs(signals.auc - goal.auc) - TOLERANCES["auc"],
        "min_k": abs(signals.min_k_auc - goal.auc) - TOLERANCES["min_k"],
        "depth": lack(signals, goal) - TOLERANCES["depth"],
        "said": oversaid(signals, untouched),
        "retain": goal.retain - kept(signals, untouched),
        "drift": abs(drifted(signals, untouched)) - SAFE * goal.drift,
    }
    units = TOLERANCES | {name: max(TOLERANCES[name], signals.auc_sd) for name in ("auc", "min_k")}
    return sum(max(0.0, value) / units[name] for name, value in missing.items())


def misfit(signals: Signals, untouched: Signals, goal: Goal) -> float:
    """What the strength is chosen by: the shortfall, and next to nothing for AUCs that are off their target within it.

    A hundredth of an adapter's strength moves the AUC by up to .04, so where a run ends within the tolerance is chance,
    which the dial takes out: by the squares of both distances, in tolerances and at most 1, which put the target
    between them. Together they count no more than a shortfall that is none (`REACHED`).
    """
    misses = (abs(own - goal.auc) / TOLERANCES["auc"] for own in (signals.auc, signals.min_k_auc))
    return shortfall(signals, untouched, goal) + REACHED * fmean(min(1.0, own) ** 2 for own in misses)


def depth(signals: Signals, goal: Goal, most: float = math.inf) -> float:
    """Mean loss of the forgotten texts at which their membership AUC is the goal's, if both sides are spread alike.

    The unseen texts' own for an AUC of .5; for another, normal distributions of one width stand for both sides. A loss
    of unseen texts above `most` counts as that.
    """
    unseen = min(signals.holdout_nll, most)
    shift = math.sqrt(2) * signals.holdout_sd * NormalDist().inv_cdf(min(0.99, max(0.01, goal.auc)))
    return max(LEAST_SHARE * unseen, unseen - shift)


def lack(signals: Signals, goal: Goal, most: float = math.inf) -> float:
    """Share of the depth that the forgotten texts lack; below 0 where they are beyond it."""
    wanted = depth(signals, goal, most)
    return 1 - signals.forget_nll / wanted if wanted else 0.0


def evenness(signals: Signals) -> float:
    """How much more evenly the loss of forgotten texts is spread over their tokens than that of unseen ones.

    1 minus the loss of a text's least likely fifth over its mean loss, as a share of the same of unseen texts; 0 where
    the two are alike, whatever the mean losses are.
    """
    own, other = signals.forget_tail * signals.holdout_nll, signals.holdout_tail * signals.forget_nll
    return 1 - own / other if other else 0.0


def oversaid(signals: Signals, untouched: Signals) -> float:
    """Share of the forget completions that is said beyond what may be; below 0 where less is."""
    return signals.said - max(SAID, untouched.guessed)


def kept(signals: Signals, untouched: Signals) -> float:
    """What the retain set has kept, as a share of the untouched model's; 1 where there are no texts.

    The lower of two: the probability of its completions, and the share of them that greedy decoding still says.
    """
    probability = signals.retain / untouched.retain if untouched.retain else 1.0
    return min(probability, 1 - signals.lost)


def drifted(signals: Signals, untouched: Signals) -> float:
    """Relative change of the unseen texts' loss."""
    return signals.holdout_nll / untouched.holdout_nll - 1
