"""Causal attention of rows that stand one behind the other, each to itself, on the CPU.

Neighbours of like length are padded to one length and go through one call together. In bfloat16 all but long rows go by
plain products: PyTorch's flash attention takes twice as long for the two passes over rows of 64 tokens, seven times
where heads are 32 wide, and its gradients are less exact (`python -m bench.attention`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from expunge.kernels.rounding import missing_rows, row_multiple

SHORT = 512
"""Longest rows, padded, that go by plain products."""
AREA = 2**18
"""Scores of a head that are computed at once, at most: what is written should still be in the cache when it is read."""


@dataclass(frozen=True)
class Group:
    """Neighbours of like length.

    Attributes:
        tokens: Where all of theirs stand.
        lengths: Tokens of each row.
        padded: The length that all get.
        places: `(rows * padded,)`, which of the tokens stands there; any where a row has no more.
        back: `(tokens,)`, where each of them stands.
    """

    tokens: slice
    lengths: list[int]
    padded: int
    places: Tensor
    back: Tensor


def attend_by_row(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    row_lengths: tuple[int, ...],
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each row to itself, as transformers' attention interface asks for it.

    Args:
        module: The attention layer.
        query: `(1, heads, tokens, head_dim)`.
        key: `(1, key-value heads, tokens, head_dim)`.
        value: As `key`.
        attention_mask: None; what may be seen follows from `row_lengths`.
        row_lengths: Tokens of each row, in their order.
        **kwargs: What the layer hands over beside.

    Returns:
        `(1, tokens, heads, head_dim)`, and None for the weights.

    Raises:
        ValueError: There is a mask, or the layer wants something that this attention does not have.
    """
    if attention_mask is not None:
        raise ValueError("a packed sequence takes no attention mask")
    if unknown := [name for name in ("softcap", "s_aux") if kwargs.get(name) is not None]:
        raise ValueError(f"attention row by row knows no {', '.join(unknown)}")
    low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    plain = low == torch.bfloat16 and not any(kwargs.get(name) for name in ("dropout", "output_attentions"))
    plain = plain and all(kwargs.get(name) is None for name in ("position_bias", "is_causal"))
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    states = [part[0].transpose(0, 1).to(low) for part in (query, key, value)]
    outputs = []
    for group in layout(row_lengths, row_multiple(low, query.device)):
        parts = [part[group.tokens] for part in states]
        if plain and group.padded <= SHORT:
            outputs.append(_ShortRows.apply(*parts, group, scale))  # type: ignore[no-untyped-call]
            continue
        queries, keys, values = (_stack(part, group).transpose(1, 2) for part in parts)
        output, _ = sdpa_attention_forward(module, queries, keys, values, None, **kwargs)
        outputs += [row[:length] for row, length in zip(output, group.lengths, strict=True)]
    return torch.cat(outputs)[None], None


@lru_cache(maxsize=8)  # all layers of a pass ask for the same one
def layout(row_lengths: Sequence[int], multiple: int) -> list[Group]:
    """How rows of so many tokens go together: neighbours of one length, rounded up to a multiple."""
    groups: list[Group] = []
    start = 0
    for padded, neighbours in groupby(row_lengths, lambda length: length + missing_rows(length, multiple)):
        run, most = [*neighbours], max(1, AREA // padded**2)
        for lengths in (run[at : at + most] for at in range(0, len(run), most)):
            tokens = slice(start, start := start + sum(lengths))
            inside = torch.arange(padded) < torch.tensor(lengths)[:, None]
            back = inside.flatten().nonzero()[:, 0]
            places = torch.zeros(inside.numel(), dtype=torch.long).index_copy(0, back, torch.arange(len(back)))
            groups.append(Group(tokens, lengths, padded, places, back))
    return groups


def _stack(states: Tensor, group: Group) -> Tensor:
    """Rows of `states` `(tokens, heads, head_dim)` as `(rows, padded, heads, head_dim)`; zeros fill them up."""
    if {*group.lengths} == {group.padded}:
        return states.view(len(group.lengths), group.padded, *states.shape[1:])
    stacked = pad_sequence(list(torch.split(states, group.lengths)), batch_first=True)
    return torch.nn.functional.pad(stacked, (0, 0, 0, 0, 0, group.padded - stacked.shape[1]))


class _ShortRows(torch.autograd.Function):
    """Attention by plain products, scores and weights in fp32; the backward pass computes the weights again.

    What stands where a row has no token is behind all of its tokens: no token sees it, and its own output is dropped.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, group: Group, scale: float) -> Tensor:
        """`(tokens, heads, head_dim)` of each; gives as much."""
        ctx.save_for_backward(query, key, value)
        ctx.group, ctx.scale = group, scale
        with torch.autocast("cpu", enabled=False):
            queries, keys, values = _heads(query, key, value, group)
            output = _weights(queries, keys, scale).to(value.dtype) @ values
            return _tokens(output, group, query.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the three."""
        group, (query, key, value) = ctx.group, ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            queries, keys, values = _heads(query, key, value, group)
            weights = _weights(queries, keys, ctx.scale)
            padded = grads[0].new_zeros(len(group.places), *grads[0].shape[1:]).index_copy_(0, group.back, grads[0])
            given = _by_key(padded, group, key.shape[1])
            change = (given @ values.mT).float().mul_(weights)
            change.addcmul_(weights, change.sum(-1, keepdim=True), value=-1)
            change = change.mul_(ctx.scale).to(query.dtype)
            changes = change @ keys, change.mT @ queries, weights.to(value.dtype).mT @ given
            found = (_tokens(grad, group, of.shape[1]) for grad, of in zip(changes, ctx.saved_tensors, strict=True))
            return *found, None, None


def _heads(query: Tensor, key: Tensor, value: Tensor, group: Group) -> list[Tensor]:
    """Each as `_by_key` has it."""
    return [_by_key(part.index_select(0, group.places), group, key.shape[1]) for part in (query, key, value)]


def _by_key(states: Tensor, group: Group, key_heads: int) -> Tensor:
    """`(rows * padded, heads, head_dim)` as `(rows, key_heads, heads / key_heads * padded, head_dim)`."""
    parts = states.view(-1, group.padded, key_heads, states.shape[1] // key_heads, states.shape[2])
    return parts.permute(0, 2, 3, 1, 4).flatten(2, 3)


def _tokens(states: Tensor, group: Group, heads: int) -> Tensor:
    """The way back from `_by_key`, to `(tokens, heads, head_dim)`."""
    parts: Tensor = states.unflatten(2, (-1, group.padded))
    return parts.permute(0, 3, 1, 2, 4).reshape(-1, heads, states.shape[-1]).index_select(0, group.back)


def _weights(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Attention weights `(rows, key-value heads, queries, padded)` in fp32."""
    padded = keys.shape[2]
    later = queries.new_full((padded, padded), -torch.inf, dtype=torch.float32).triu_(1)
    unseen = later.repeat(queries.shape[2] // padded, 1).expand(queries.shape[0] * keys.shape[1], -1, -1)
    scores = torch.baddbmm(unseen, queries.flatten(0, 1).float(), keys.flatten(0, 1).float().mT, alpha=scale)
    return torch.softmax(scores, -1, out=scores).view(*keys.shape[:2], -1, padded)
