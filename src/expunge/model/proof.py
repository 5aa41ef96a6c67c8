"""Proofs on the model itself, with a few rows of tokens: that two forms of it say the same, and that it is causal."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from expunge.errors import ModelError
from expunge.model.head import EXACT
from expunge.model.layers import embedding_of

ROWS, TOKENS = 4, 24
"""Rows of the probe and their tokens."""
FAULT = 16
"""A form that differs by more than this part of the adapter's effect is another model; a scale that is a quarter off
differs by a fourth of it."""
TINY = 1e-300
EXACT_UNITS, LOW_UNITS = 256, 16
"""Units in the last place by which log-probabilities may differ through rounding, in fp32 and below."""
LEAK = 8
"""Units of rounding by which a later token may move an earlier one: that of experts' products, whose sizes change."""


def probe_rows(model: PreTrainedModel, extra: Sequence[int] = ()) -> Tensor:
    """Token ids `(ROWS, TOKENS)`, the same every time; `extra` ids stand among them."""
    config = model.config.get_text_config()
    most = max(2, getattr(config, "max_position_embeddings", None) or TOKENS)
    generator = torch.Generator().manual_seed(0)
    rows = embedding_of(model).shape[0]
    ids = torch.randint(0, min(config.vocab_size, rows), (ROWS, min(TOKENS, most)), generator=generator)
    for at, token in enumerate(list(extra)[: ids.numel() // 2]):
        ids[at % ROWS, 1 + (at // ROWS) % (ids.shape[1] - 1)] = token
    return ids.to(model.device)


@torch.no_grad()
def log_probs(model: torch.nn.Module, ids: Tensor, autocast: AbstractContextManager[None] | None = None) -> Tensor:
    """Log-probabilities `(rows, tokens, vocab)` of the model as it is, in fp32 at least."""
    with autocast or nullcontext():
        logits = model(input_ids=ids, use_cache=False).logits
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)


def check_same(
    form: Tensor, right: Tensor, untouched: Tensor, what: str, *, dtype: torch.dtype, same_weights: bool = False
) -> None:
    """Look whether one form of a model with an adapter says what the other says.

    In fp32 the two must agree at every place, but for rounding or a small part of the adapter's effect. Rounding to
    bf16 alone can be as large as the effect of a weak adapter; but it goes either way, while a fault goes along with
    the effect: the share of it that is missing or too much is estimated over all places, and must be small. Of an
    adapter whose matrices are the same nothing but rounding is left: the effect of a weak one is lost in it, and a
    strong one (of a hundred nats) carries it far at a few places, so the mean over all places must be small.

    Args:
        form: Log-probabilities of the form that is to be believed.
        right: Those of the model with the adapter.
        untouched: Those of the model without it: `right` less these is the adapter's effect.
        what: What is refused where they differ, for the message.
        dtype: What the products of both were computed in.
        same_weights: The adapter's matrices were found to be the same in both.

    Raises:
        ModelError: They differ.
    """
    form, right, untouched = (logps.double() for logps in (form, right, untouched))
    difference, effect = form - right, right - untouched
    worst, most = difference.abs().max().item(), effect.abs().max().item()
    mean, usual = difference.abs().mean().item(), effect.abs().mean().item()
    if not math.isfinite(worst):
        raise ModelError(f"{what}: the log-probabilities are not finite")
    exact = torch.finfo(dtype).eps <= torch.finfo(torch.float32).eps
    units = (EXACT_UNITS if exact else LOW_UNITS) * torch.finfo(dtype).eps
    noise = units * max(1.0, right.abs().max().item())  # a few units in the last place of the largest
    same = worst <= max(noise, most / FAULT)
    if exact:
        same = same and mean <= max(noise / 4, usual / FAULT)
    elif same_weights:
        same = mean <= max(units * max(1.0, right.abs().mean().item()) / 4, usual / FAULT)
    elif usual > 0:
        effect = (form + right) / 2 - untouched  # of `right` alone, its own rounding would go along with the difference
        size = effect.norm().item() ** 2 or TINY
        share = abs((difference * effect).sum().item()) / size
        by_chance = difference.norm().item() / math.sqrt(size * difference.numel())
        same = same and share <= 1 / FAULT + 3 * by_chance
    if not same:
        raise ModelError(
            f"{what}: it says something else than the adapter does (log-probabilities differ by {worst:.3g} nats, "
            f"{mean:.3g} on average, of an effect of {most:.3g} and {usual:.3g})"
        )


@torch.no_grad()
def check_causal(model: PreTrainedModel, where: str, autocast: AbstractContextManager[None]) -> None:
    """Look whether what the model says of a token is the same whatever comes after it.

    Raises:
        ModelError: It is not: an encoder, or a decoder whose mask is open.
    """
    ids = probe_rows(model)[:1]
    half = ids.shape[1] // 2
    other = ids.clone()
    other[:, half:] = (ids[:, half:] + 1).remainder(model.config.get_text_config().vocab_size)
    with autocast:
        first, second = (model(input_ids=batch, use_cache=False).logits[:, :half].double() for batch in (ids, other))
    if not first.isfinite().all():
        return  # damaged weights or too narrow a dtype, which is said of by its own name
    moved = (first - second).norm(dim=-1) / first.norm(dim=-1).clamp_min(1e-30)
    if not moved.max().item() <= max(EXACT, LEAK * torch.finfo(model.dtype).eps):
        kind = type(model).__name__
        raise ModelError(
            f"{where}: {kind} is not causal here: what it says of a token changes with those after it (an encoder, as "
            "BERT with is_decoder false, or an open attention mask), so it is not trained or scored as a language model"
        )
