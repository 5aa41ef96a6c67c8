"""All terms of the loss of a run: names, weights, formulas and sources, from which card, manifest and report are made.

    loss = forget_weight * forget + retain_weight * retain + kl_weight * kl + replay_weight * replay
           + instead_weight * instead

A term `x` is weighted by the setting `x_weight` and logged in the column `x`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from expunge.config import UnlearnConfig
from expunge.kernels import token_kl, token_logps, token_logps_and_kl
from expunge.losses import ForgetLoss
from expunge.losses.batch import TokenBatch, needed


@dataclass(frozen=True)
class Term:
    """One term of the loss.

    Attributes:
        name: Its column; its weight is the setting `<name>_weight`.
        formula: Plain text.
        source: Where it comes from.
        weight: Its weight in a run.
    """

    name: str
    formula: str
    source: str
    weight: float = 0.0


def terms_of(config: UnlearnConfig, loss: ForgetLoss) -> list[Term]:
    """The terms that a run minimises, in the order of their columns."""
    found = [
        Term("forget", loss.formula, loss.source, config.forget_weight),
        Term("retain", "mean_t -log p(y_t) over retain completions", "arXiv 2503.13690",
             config.retain_weight),
        Term("kl", "mean_t KL(p || p_ref) over the whole vocabulary, retain texts", "arXiv 2503.13690",
             config.kl_weight),
        Term("replay", "mean_t KL(p || p_ref) over the whole vocabulary, texts of the untouched model",
             "this project, docs/method.md", config.replay_weight),
        Term("instead", "mean_t -log p(y_t) over what to say instead", "this project, docs/method.md",
             config.instead_weight if config.instead and "pairs" not in loss.needs else 0.0),
    ]  # fmt: skip
    return [term for term in found if term.weight]


def loss_terms(sides: Mapping[str, TokenBatch], loss: ForgetLoss) -> dict[str, Tensor]:
    """The share of one micro-batch in each term of its step, and in what the forget loss notes beside; what has no
    rows in it is left out.

    Args:
        sides: The micro-batch after its forward pass, as `collate` gives it.
        loss: The forget loss.
    """
    terms = {}
    if "forget" in sides:
        terms["forget"] = loss(sides["forget"])
        terms |= {name: value for name, value in sides["forget"].noted.items() if name in loss.columns}
    if "instead" in sides:
        batch = sides["instead"]
        terms["instead"] = batch.token_mean(-batch.logps)
    if "retain" in sides:
        batch = sides["retain"]
        targets = batch.targets.where(batch.completion, -100)  # prompts are held by the KL alone
        if batch.ref_states is None:
            logps = token_logps(batch.states, batch.head, targets)
        else:
            logps, kl = token_logps_and_kl(batch.states, batch.ref_states, batch.head, targets)
            terms["kl"] = batch.token_mean(kl)
        terms["retain"] = logps.sum() / -batch.num_completion_tokens
    if "replay" in sides:
        batch = sides["replay"]
        terms["replay"] = batch.token_mean(token_kl(batch.states, needed(batch.ref_states), batch.head))
    return terms
