"""Rows of any length one behind the other in a single sequence: no padding, and matrix products as large as can be.

Positions start again with every row, and no row sees another. Attention gets there in one of three ways, which
`attention_way` chooses by the device:

| way | calls a layer | cost in a sequence of T tokens | where |
|---|---|---|---|
| by mask | 1, `sdpa` with the mask that transformers makes of positions that start again | T^2 | everywhere |
| `VARLEN` | 1, PyTorch's flash attention for rows of any length | sum of the squares of the lengths | CUDA, bfloat16 |
| `ROWS` | 1 for each stretch of rows of like length | sum of the squares of the lengths | CPU |

On a GPU each call costs some microseconds of the host's time whatever it computes, so their number must not grow with
the rows; on the CPU arithmetic is what costs. All go through the attention interface of transformers; whether an
architecture takes part is found out by trying, on load. One whose layers mix along the sequence in another way
(convolutions, recurrences) does not.
"""

import inspect
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv

from expunge.model.head import backbone
from expunge.model.row_attention import attend_by_row
from expunge.model.source import first_line

MASK, VARLEN, ROWS = "sdpa", "expunge_varlen", "expunge_rows"
"""Names of the ways, as transformers' attention interface knows them."""
VARLEN_HEAD_DIM, VARLEN_MULTIPLE = 256, 8
"""Widest head that flash attention takes, and what its width must be a multiple of."""
UNBOUNDED = 2**31
"""Longest row of a model whose attention reaches back to the first token."""
PROBE = (7, 12, 3)
"""Lengths of the rows that an architecture is tried on."""
ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")
"""Kinds of layers that do nothing along the sequence but attend."""
MOST_ROUNDING = 0.2
"""Largest mean difference of a row's states, as a share of their size, that is taken for rounding."""
UNSEEN = 1e-5
"""Change of a state, as a share of its size, that other rows beside its own may cause: the rounding of experts, whose
products are of another size then. All else is the same to the last bit, in any precision."""


def attention_way(model: PreTrainedModel) -> str:
    """How the rows of a packed sequence attend on the device of this model, in the precision that is set right now."""
    device = model.device.type
    if device == "cpu":
        return ROWS
    products = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
    width = head_width(model.config.get_text_config())
    flash = (
        device == "cuda"
        and products in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(model.device) >= (8, 0)
        and width <= VARLEN_HEAD_DIM
        and width % VARLEN_MULTIPLE == 0
        and getattr(model, "_supports_flash_attn", False)
        and not getattr(model.config.get_text_config(), "v_head_dim", None)  # values of another width than keys
    )
    return VARLEN if flash else MASK


def head_width(config: PretrainedConfig) -> int:
    """Values of a key in one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def packable_length(model: PreTrainedModel, products: torch.dtype | None = None) -> tuple[int, str | None]:
    """Longest row that may stand in a packed sequence of this model; 0 when its rows must be padded instead, and why.

    Tried on a few tokens: each row's final hidden states must be those of the row alone, and stay when the rows beside
    it are others.

    Args:
        model: The model.
        products: What its matrix products will run in; as its weights are stored when None.
    """
    config = model.config.get_text_config()
    if config._attn_implementation != MASK:
        return 0, f"its layers do not attend by PyTorch's {MASK!r} ({config._attn_implementation!r})"
    if not hasattr(model, model.base_model_prefix):
        return 0, "its layers are not apart from its head"
    if unusual := unusual_layers(model, ATTENTION):
        return 0, f"it has layers that do more than attend along the sequence ({', '.join(unusual)})"
    with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=products == torch.bfloat16):
        # What a way does not know of, rows must be too short to notice.
        unknown = {MASK: (), VARLEN: ("attention_chunk_size",), ROWS: ("sliding_window", "attention_chunk_size")}
        windows = (getattr(config, name, None) for name in unknown[attention_way(model)])
        longest = min((window for window in windows if window), default=UNBOUNDED)
        lengths, seen = [min(length, longest) for length in PROBE], set[int | None]()
        # From all over the vocabulary: the first tokens are special ones, whose states rounding moves far.
        step = max(1, config.vocab_size // (max(PROBE) + 2))
        rows = [
            torch.arange(1, length + 1, device=model.device).mul(step).remainder(config.vocab_size)
            for length in lengths
        ]
        batch = pad_sequence(rows, batch_first=True)
        real = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        before, row, behind = rows
        others = [(ids + config.vocab_size // 2).remainder(config.vocab_size) for ids in (before, behind)]
        try:
            alone = torch.cat(
                [backbone(model)(input_ids=ids[None], use_cache=False).last_hidden_state for ids in rows], 1
            )
            packed = packed_states(model, torch.cat(rows)[None], lengths, seen=seen)
            padded = backbone(model)(input_ids=batch, attention_mask=real, use_cache=False).last_hidden_state
            beside_others = packed_states(model, torch.cat([others[0], row, others[1]])[None], lengths)
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            return 0, f"its attention does not go through transformers' interface ({first_line(error)})"
    # Rounding is a few eps and grows with the depth: too much in bfloat16 to tell it from a row that is seen a little.
    # What the model itself makes of it is what padding, another shape of the same products, does to the states.
    eps = max(torch.finfo(dtype).eps for dtype in (alone.dtype, products or alone.dtype))
    rounding = min(2 * _row_difference(padded[real.bool()][None], alone, lengths), MOST_ROUNDING)
    apart, most = _row_difference(packed, alone, lengths), max(math.sqrt(eps), rounding)
    if not apart <= most:
        return 0, f"a row in a packed sequence is {apart:.2g} from the row alone, of {most:.2g} that rounding explains"
    place = slice(len(before), len(before) + len(row))
    moved = float(_differences(beside_others[:, place], packed[:, place]).max())
    if not moved <= UNSEEN:
        return 0, f"the rows beside a row in a packed sequence change it by {moved:.2g} of its size"
    window = getattr(config, "sliding_window", None)
    if seen == {None} and window:  # its layers leave the window to the mask, which is not made here
        longest = min(longest, window)
    return longest, None


def unusual_layers(model: PreTrainedModel, usual: Collection[str]) -> list[str]:
    """The kinds of layers that a model has by its configuration, but for the `usual` ones; sorted."""
    return sorted({*(getattr(model.config.get_text_config(), "layer_types", None) or ())} - {*usual})


def _differences(states: Tensor, right: Tensor) -> Tensor:
    """`(tokens,)`: the difference of each position's states `(1, tokens, hidden)` as a share of their size."""
    apart: Tensor = (states - right).double().norm(dim=-1) / right.double().norm(dim=-1)
    return apart[0]


def _row_difference(states: Tensor, right: Tensor, lengths: Sequence[int]) -> float:
    """The mean over the positions of a row, of the row in which it is largest: rounding alone, in bfloat16, moves a
    single position of a language model by a tenth.
    """
    return max(float(part.mean()) for part in _differences(states, right).split(list(lengths)))


def packed_states(
    model: PreTrainedModel, input_ids: Tensor, lengths: Sequence[int], *, seen: set[int | None] | None = None
) -> Tensor:
    """Final hidden states `(1, tokens, hidden)` of rows of `lengths` tokens that stand in `input_ids` `(1, tokens)`.

    What stands behind the last of them fills up: rows of their own, none longer than the others. Into `seen` go the
    windows that the layers hand to flash attention.
    """
    behind, longest = input_ids.shape[1] - sum(lengths), max(lengths)
    lengths = [*lengths, *filling(behind, longest)]
    way, device = attention_way(model), input_ids.device
    ends, positions = row_places(lengths)
    positions = send(positions, device)
    if way == VARLEN:
        return flash_states(model, input_ids, positions, send(ends, device), longest, seen)
    layout: dict[str, Any] = {"row_lengths": tuple(lengths)} if way == ROWS else {}
    return _states(model, way, input_ids, positions, layout)


def filling(tokens: int, longest: int) -> list[int]:
    """Lengths of rows of `tokens` together, at most `longest` each, that fill a sequence up."""
    return [longest] * (tokens // longest) + [tokens % longest] * (tokens % longest > 0)


def row_places(lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Of rows in one sequence: `(rows + 1,)` int32 where each begins and the end, `(1, tokens)` positions in them."""
    counts = torch.tensor(lengths)
    ends = counts.cumsum(0)
    positions = torch.arange(int(ends[-1])) - (ends - counts).repeat_interleave(counts)
    return torch.nn.functional.pad(ends, (1, 0)).int(), positions[None]


def flash_states(
    model: PreTrainedModel,
    input_ids: Tensor,
    positions: Tensor,
    cuts: Tensor,
    longest: int,
    seen: set[int | None] | None = None,
) -> Tensor:
    """As `packed_states`, by flash attention, from tensors on the device alone, so that it can be captured.

    Args:
        model: The model.
        input_ids: `(1, tokens)`.
        positions: `(1, tokens)`, each token's in its row.
        cuts: `(rows + 1,)` int32, where each row begins, and the end; rows may be empty.
        longest: At least the tokens of the longest row.
        seen: As of `packed_states`.
    """
    layout: dict[str, Any] = {
        "cu_seq_lens_q": cuts,
        "cu_seq_lens_k": cuts,
        "max_length_q": longest,
        "max_length_k": longest,
    }
    layout |= {} if seen is None else {"seen_windows": seen}
    return _states(model, VARLEN, input_ids, positions, layout)


def _states(
    model: PreTrainedModel, way: str, input_ids: Tensor, positions: Tensor, layout: Mapping[str, Any]
) -> Tensor:
    with using_attention(model.config.get_text_config(), way):
        output = backbone(model)(input_ids=input_ids, position_ids=positions, use_cache=False, **layout)
    states: Tensor = output.last_hidden_state
    return states


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor from main memory on a device; the host does not wait until it is there."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@contextmanager
def using_attention(config: PretrainedConfig, way: str) -> Iterator[None]:
    """Let the layers of a model attend in another way for a while."""
    before = config._attn_implementation
    config._attn_implementation = way
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend_varlen(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    scaling: float | None = None,
    sliding_window: int | None = None,
    seen_windows: set[int | None] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each row to itself in one call: what `attend_by_row` takes, gives and refuses.

    In place of the rows' lengths come `cu_seq_lens_q`, `(rows + 1,)` int32, where each row begins, and the end, and
    `max_length_q`, at least the tokens of the longest row. A layer sees `sliding_window` tokens back, the token itself
    included, None for all; that is noted in `seen_windows`.
    """
    if seen_windows is not None:
        seen_windows.add(sliding_window)
    unknown = [name for name in ("softcap", "position_bias", "s_aux") if kwargs.get(name) is not None]
    if unknown or attention_mask is not None:
        raise ValueError(f"attention to rows of any length knows no {', '.join(unknown) or 'attention mask'}")
    options: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    if not options:  # torch 2.11
        key, value = (repeat_kv(states, query.shape[1] // key.shape[1]) for states in (key, value))
    device = query.device.type
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    query, key, value = (states[0].transpose(0, 1).to(low) for states in (query, key, value))
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    cuts, most = cu_seq_lens_q, max_length_q
    output: Any = varlen_attn(query, key, value, cuts, cuts, most, most, scale=scaling, window_size=window, **options)
    return output[None], None


AttentionInterface.register(VARLEN, _attend_varlen)
AttentionInterface.register(ROWS, attend_by_row)
