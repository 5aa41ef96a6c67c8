"""From rows to loss terms: one forward pass of a micro-batch, and its share in every mean of the step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from expunge import losses
from expunge.config import UnlearnConfig
from expunge.data.tokenize import TokenizedExample
from expunge.kernels import token_logps, token_logps_and_kl
from expunge.model.load import LoadedModel
from expunge.model.logps import Batch, final_states, lay_out, target_index
from expunge.model.reference import Side

SideName = Literal["forget", "retain", "anchor", "instead"]
SIDES: tuple[SideName, ...] = get_args(SideName)
SHALLOWEST = 0.5
"""Least relative loss of a token that the depth of its text is counted with.

What is easy in unseen texts, a digit of a year, may be what must be forgotten in others.
"""
Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True)
class Row:
    """One row of a step, with what the untouched model says of its targets.

    Attributes:
        text: The tokens.
        side: Whether it is to be forgotten, to be kept, an anchor, which the KL alone holds, or what to
            say instead, which has the NLL alone.
        ref_logps: `(targets,)`, reference log-probabilities (nats), for forget rows and under the target-token KL.
        ref_states: `(targets, hidden)`, the reference's final hidden states, for retain rows under the exact KL, for
            anchors, and for forget rows where the other tokens' shares are held.
    """

    text: TokenizedExample
    side: SideName
    ref_logps: Tensor | None = None
    ref_states: Tensor | None = None


@dataclass(frozen=True)
class Aim:
    """Where forget texts should end in a run that follows unseen texts.

    Attributes:
        depth: Mean loss of a text, nats per token; NPO has no weight beyond it.
        relative: `(vocabulary,)`, loss of each token in unseen texts, over the mean of all tokens.
        beta: NPO's, in place of the one in the settings; 0 and below it are allowed.
        pull: Most of a push backwards beyond the depth, as a share of a whole push.
        insistence: Factor on the push of completions that are said for certain (token level); a pull has none.
        pressure: Factor on NPO's weight.
        keep: Factor on the weights of the retain terms.
        hold: Factor on the weight of the anchors.
    """

    depth: float
    relative: Tensor
    beta: float
    pull: float = 0.0
    insistence: float = 1.0
    pressure: float = 1.0
    keep: float = 1.0
    hold: float = 1.0


@dataclass(frozen=True)
class Counts:
    """Denominators of one step: the units that each mean runs over, in all micro-batches of all processes together.

    Attributes:
        npo: Forget tokens in the span, or forget sequences at `level` sequence.
        rest_kl: Forget tokens in the span.
        retain_nll: Retain completion tokens.
        retain_kl: Retain tokens in the KL's span.
        anchor_kl: Tokens of anchors.
        instead_nll: Completion tokens of texts to say instead.
    """

    npo: int
    rest_kl: int
    retain_nll: int
    retain_kl: int
    anchor_kl: int
    instead_nll: int


TERMS = tuple(field.name for field in fields(Counts))
"""Names of all terms, as they are logged."""


def retain_span(config: UnlearnConfig) -> str:
    """The retain tokens that any term looks at: the KL's span where there is an exact KL, else the completions."""
    return config.kl_span if config.uses_kl_states else "completion"


def reference_sides(
    config: UnlearnConfig,
    forget: list[TokenizedExample],
    retain: list[TokenizedExample],
    anchors: list[TokenizedExample],
) -> dict[str, Side]:
    """What the terms need of the reference: nothing of the retain rows when there is no KL."""
    sides = {"forget_logps": Side(forget, config.forget_span, "logps")}
    if config.rest_weight:
        sides["forget_states"] = Side(forget, config.forget_span, "states")
    if retain and config.uses_kl_states:
        sides["retain_states"] = Side(retain, retain_span(config), "states")
    elif retain and config.kl_weight > 0:
        sides["retain_logps"] = Side(retain, retain_span(config), "logps")
    if anchors:
        sides["anchor_states"] = Side(anchors, "all", "states")
    return sides


def count(rows: Sequence[Row], config: UnlearnConfig) -> Counts:
    """The denominators of a step that consists of `rows`."""
    forget, retain, anchor, instead = ([row.text for row in rows if row.side == side] for side in SIDES)
    tokens = sum(len(text.targets(config.forget_span)) for text in forget)
    return Counts(
        npo=len(forget) if config.level == "sequence" else tokens,
        rest_kl=tokens,
        retain_nll=sum(len(text.targets("completion")) for text in retain),
        retain_kl=sum(len(text.targets(retain_span(config))) for text in retain),
        anchor_kl=sum(len(text.targets("all")) for text in anchor),
        instead_nll=sum(len(text.targets("completion")) for text in instead),
    )


def weighted_sum(terms: Mapping[str, Number], config: UnlearnConfig, aim: Aim | None = None) -> Number:
    """The sum of the terms, each times its weight in the settings and what the run has made of it.

    Terms that are not there count nothing.
    """
    pressure, keep, hold = (aim.pressure, aim.keep, aim.hold) if aim else (1.0, 1.0, 1.0)
    weights = {
        "npo": config.forget_weight * pressure,
        "rest_kl": config.rest_weight,
        "retain_nll": config.retain_weight * keep,
        "retain_kl": config.kl_weight * keep,
        "anchor_kl": config.anchor_weight * hold,
        "instead_nll": config.instead_weight,
    }
    first, *others = (weights[name] * value for name, value in terms.items())
    return sum(others, start=first)


def loss_terms(
    loaded: LoadedModel, rows: Sequence[Row], counts: Counts, config: UnlearnConfig, aim: Aim | None = None
) -> dict[str, Tensor]:
    """The share of one micro-batch in each term of its step; a term without rows in the micro-batch is left out.

    Args:
        loaded: The policy.
        rows: The micro-batch.
        counts: Denominators of the whole step, so that micro-batch boundaries do not change the sum.
        config: Which terms, over which spans.
        aim: How deep to push the forget texts, and how evenly; None pushes without end.
    """
    forget, retain, anchor, instead = ([row for row in rows if row.side == side] for side in SIDES)
    batch = lay_out(loaded, [row.text.input_ids for row in forget + retain + anchor + instead])
    states = final_states(loaded, batch)
    terms: dict[str, Tensor] = {}
    if forget:
        terms |= _forget(loaded, forget, batch, states, counts, config, aim)
    if retain:
        terms |= _retain(loaded, retain, batch, states, len(forget), counts, config)
    if anchor:
        terms["anchor_kl"] = _anchor(loaded, anchor, batch, states, len(forget) + len(retain), counts)
    if instead:
        terms["instead_nll"] = _instead(loaded, instead, batch, states, len(rows) - len(instead), counts)
    return terms


def _forget(
    loaded: LoadedModel,
    rows: list[Row],
    batch: Batch,
    states: Tensor,
    counts: Counts,
    config: UnlearnConfig,
    aim: Aim | None,
) -> dict[str, Tensor]:
    """Terms of the forget rows, which stand first in the batch."""
    index, positions = target_index(batch, [row.text for row in rows], config.forget_span)
    ids, own = batch.flat_ids[positions], states[positions - 1]
    ref_logps = torch.cat([row.ref_logps for row in rows if row.ref_logps is not None])
    kl = None
    if config.rest_weight:
        ref_states = torch.cat([row.ref_states for row in rows if row.ref_states is not None])
        logps, kl = token_logps_and_kl(own, ref_states, loaded.head, ids, "reverse")
    else:
        logps = token_logps(own, loaded.head, ids)
    end = loaded.tokenizer.eos_token_id
    terms = {"npo": _npo(logps, ref_logps, rows, batch, index, positions, counts, config, aim, end)}
    if kl is not None:
        terms["rest_kl"] = losses.rest_kl(kl, logps, ref_logps, num_tokens=counts.rest_kl)
    return terms


def _npo(
    logps: Tensor,
    ref_logps: Tensor,
    rows: list[Row],
    batch: Batch,
    index: Tensor,
    positions: Tensor,
    counts: Counts,
    config: UnlearnConfig,
    aim: Aim | None,
    end: int | None,
) -> Tensor:
    """NPO without end, or to a depth, on tokens of the rows `index` that stand at `positions` in the batch."""
    ids = batch.flat_ids[positions]
    by_sequence = config.level == "sequence"
    if aim is None:
        if by_sequence:
            return losses.npo_sequence(logps, ref_logps, index, beta=config.beta, num_sequences=counts.npo)
        return losses.npo_token(logps, ref_logps, beta=config.beta, num_tokens=counts.npo)
    relative = aim.relative[ids]
    # Prompt and completion have each their own share: else a short answer stays while its question is past the depth.
    completion = positions >= _places(batch, rows, [row.text.completion_start for row in rows])[index]
    groups = index if by_sequence else 2 * index + completion.long()
    push = losses.push(logps, aim.depth * relative.clamp(min=SHALLOWEST), groups, aim.pull)
    if by_sequence:
        return losses.npo_sequence(logps, ref_logps, index, beta=config.beta, num_sequences=counts.npo, push=push)
    weights = losses.push_odds(logps, push[groups]) * losses.spread(logps, ref_logps, groups, beta=aim.beta)
    silent = positions >= _places(batch, rows, [row.text.spoken(end).stop for row in rows])[index]
    harder = losses.insistence(logps.masked_fill(silent, 0), groups, most=aim.insistence)
    harder = harder.where(push > 0, 1.0)[groups].where(completion, 1.0)
    return losses.pushed(logps, weights * harder * relative, num_tokens=counts.npo)


def _places(batch: Batch, rows: Sequence[Row], own: Sequence[int], first: int = 0) -> Tensor:
    """`(rows,)`, place in the batch of position `own` of each row; the rows stand in it from place `first` on."""
    starts = batch.starts[first : first + len(rows)]
    return torch.tensor([start + at for start, at in zip(starts, own, strict=True)], device=batch.flat_ids.device)


def _anchor(loaded: LoadedModel, rows: list[Row], batch: Batch, states: Tensor, first: int, counts: Counts) -> Tensor:
    """KL(policy || reference) on all tokens of the anchors, which stand in the batch from place `first` on."""
    _, positions = target_index(batch, [row.text for row in rows], "all", first)
    ref_states = torch.cat([row.ref_states for row in rows if row.ref_states is not None])
    _, kl = token_logps_and_kl(
        states[positions - 1], ref_states, loaded.head, torch.full_like(positions, -100), "reverse"
    )
    return losses.retain_kl(kl, num_tokens=counts.anchor_kl)


def _instead(loaded: LoadedModel, rows: list[Row], batch: Batch, states: Tensor, first: int, counts: Counts) -> Tensor:
    """NLL on the completions of what to say instead, whose rows stand in the batch from place `first` on."""
    _, positions = target_index(batch, [row.text for row in rows], "completion", first)
    logps = token_logps(states[positions - 1], loaded.head, batch.flat_ids[positions])
    return losses.retain_nll(logps, num_tokens=counts.instead_nll)


def _retain(
    loaded: LoadedModel,
    rows: list[Row],
    batch: Batch,
    states: Tensor,
    first: int,
    counts: Counts,
    config: UnlearnConfig,
) -> dict[str, Tensor]:
    """Terms of the retain rows, which stand in the batch from place `first` on."""
    index, positions = target_index(batch, [row.text for row in rows], retain_span(config), first)
    starts = _places(batch, rows, [row.text.completion_start for row in rows], first)
    own, targets = states[positions - 1], batch.flat_ids[positions]
    targets = targets.where(positions >= starts[index], -100)  # prompt tokens are held by the KL alone
    if config.kl_weight == 0:
        logps = token_logps(own, loaded.head, targets)
        return {"retain_nll": losses.retain_nll(logps, num_tokens=counts.retain_nll)}
    if config.kl_direction == "target-token":
        logps = token_logps(own, loaded.head, targets)
        ref_logps = torch.cat([row.ref_logps for row in rows if row.ref_logps is not None])
        kl = losses.target_token_kl(logps, ref_logps)
    else:
        ref_states = torch.cat([row.ref_states for row in rows if row.ref_states is not None])
        logps, kl = token_logps_and_kl(own, ref_states, loaded.head, targets, config.kl_direction)
    return {
        "retain_nll": losses.retain_nll(logps, num_tokens=counts.retain_nll),
        "retain_kl": losses.retain_kl(kl, num_tokens=counts.retain_kl),
    }
