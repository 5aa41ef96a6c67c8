"""Rows of any length one behind the other in a single sequence: no padding, and matrix products as large as can be.

Positions start again with every row, and attention runs row by row, so that no row sees another. It goes through
the attention interface of transformers; whether an architecture takes part is found out by trying, on load. One whose
layers mix along the sequence in another way (convolutions, recurrences) does not.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from expunge.kernels.rounding import missing_rows, row_multiple
from expunge.model.head import backbone

NAME = "expunge_packed"
UNBOUNDED = 2**31
"""Longest row of a model whose attention reaches back to the first token."""
PROBE = (7, 12, 3)
"""Lengths of the rows that an architecture is tried on."""
ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")
"""Kinds of layers that do nothing along the sequence but attend."""
UNSEEN = 1e-5
"""Change of a state, as a share of its size, that other rows beside its own may cause: the rounding of experts, whose
products are of another size then. All else is the same to the last bit, in any precision."""


def packable_length(model: PreTrainedModel) -> int:
    """Longest row that may stand in a packed sequence of this model; 0 when its rows must be padded instead.

    Tried on a few tokens: each row's final hidden states must be those of the row alone, and stay when the rows beside
    it are others.
    """
    config = model.config.get_text_config()
    if config._attn_implementation != "sdpa" or not hasattr(model, model.base_model_prefix):
        return 0
    if unusual_layers(model, ATTENTION):
        return 0
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    longest = min((window for window in windows if window), default=UNBOUNDED)
    lengths = [min(length, longest) for length in PROBE]
    rows = [torch.arange(1, length + 1, device=model.device).remainder(config.vocab_size) for length in lengths]
    before, row, behind = rows
    others = [(own + config.vocab_size // 2).remainder(config.vocab_size) for own in (before, behind)]
    with torch.no_grad():
        try:
            alone = torch.cat(
                [backbone(model)(input_ids=own[None], use_cache=False).last_hidden_state for own in rows], 1
            )
            packed = packed_states(model, torch.cat(rows)[None], lengths)
            beside_others = packed_states(model, torch.cat([others[0], row, others[1]])[None], lengths)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
            return 0  # its attention does not go through the interface
    # Rounding is a few eps and grows with the depth: too much in bfloat16 to tell it from a row that is seen a little.
    same = _difference(packed, alone) <= math.sqrt(torch.finfo(alone.dtype).eps)
    place = slice(len(before), len(before) + len(row))
    unseen = _difference(beside_others[:, place], packed[:, place]) <= UNSEEN
    return longest if same and unseen else 0


def unusual_layers(model: PreTrainedModel, usual: Collection[str]) -> list[str]:
    """The kinds of layers that a model has by its configuration, but for the `usual` ones; sorted."""
    return sorted({*(getattr(model.config.get_text_config(), "layer_types", None) or ())} - {*usual})


def _difference(states: Tensor, right: Tensor) -> float:
    """The largest difference of a position's states `(1, tokens, hidden)` as a share of their size."""
    return ((states - right).double().norm(dim=-1) / right.double().norm(dim=-1)).max().item()


def packed_states(model: PreTrainedModel, input_ids: Tensor, lengths: Sequence[int]) -> Tensor:
    """Final hidden states `(1, tokens, hidden)` of rows of `lengths` tokens that stand in `input_ids` `(1, tokens)`.

    What stands behind the last of them is a row of its own.
    """
    behind = input_ids.shape[1] - sum(lengths)
    lengths = [*lengths, behind] if behind else lengths
    positions = torch.cat([torch.arange(length, device=input_ids.device) for length in lengths])[None]
    with _packed_attention(model):
        output = backbone(model)(
            input_ids=input_ids, position_ids=positions, use_cache=False, row_lengths=tuple(lengths)
        )
    states: Tensor = output.last_hidden_state
    return states


@contextmanager
def _packed_attention(model: PreTrainedModel) -> Iterator[None]:
    config = model.config.get_text_config()
    own = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = own


def _attend_by_row(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    row_lengths: tuple[int, ...],
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each row to itself; neighbours of one length, padded to a rounded one, go together.

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
    """
    if attention_mask is not None:
        raise ValueError("a packed sequence takes no attention mask")
    multiple = row_multiple(query.dtype, query.device)
    groups = [
        (padded, list(rows))
        for padded, rows in groupby(row_lengths, lambda length: length + missing_rows(length, multiple))
    ]
    cuts = [sum(rows) for _, rows in groups]
    outputs = []
    for (padded, rows), *parts in zip(
        groups, *(states[0].transpose(0, 1).split(cuts) for states in (query, key, value)), strict=True
    ):
        stacked = (_stack(part, rows, padded).transpose(1, 2) for part in parts)
        output, _ = sdpa_attention_forward(module, *stacked, None, **kwargs)  # (rows, padded, heads, head_dim)
        outputs += (
            [output.flatten(0, 1)] if set(rows) == {padded} else [own[:n] for own, n in zip(output, rows, strict=True)]
        )
    return torch.cat(outputs)[None], None


def _stack(states: Tensor, rows: Sequence[int], padded: int) -> Tensor:
    """Rows of `states` `(tokens, heads, head_dim)` as `(rows, padded, heads, head_dim)`; zeros fill them up."""
    if set(rows) == {padded}:
        return states.unflatten(0, (len(rows), padded))
    stacked = pad_sequence(list(states.split(list(rows))), batch_first=True)
    return torch.nn.functional.pad(stacked, (0, 0, 0, 0, 0, padded - stacked.shape[1]))


AttentionInterface.register(NAME, _attend_by_row)
