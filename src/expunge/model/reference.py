"""What the untouched model says of every token that a loss term looks at, computed once before training.

The reference is the same weights with the adapter off. Its head is frozen, so the final hidden state of a token fixes
the token's whole distribution: NPO needs one number per forget token, the exact KL `hidden` numbers per retain token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.data.batches import micro_batches
from expunge.data.tokenize import TokenizedExample
from expunge.kernels import token_logps
from expunge.model.load import LoadedModel
from expunge.model.logps import final_states, pad_right, target_index


@dataclass
class Reference:
    """Reference values of one set of rows.

    Attributes:
        logps: For each row `(targets,)`, fp32: the log-probability (nats) of each target token.
        states: For each row `(targets, hidden)`, the final hidden state that predicts each target token, in the dtype
            that the head multiplies in (so rounding loses nothing); None when no term needs them.
    """

    logps: list[Tensor]
    states: list[Tensor] | None = None


@torch.no_grad()
def compute_reference(
    loaded: LoadedModel,
    rows: Sequence[TokenizedExample],
    span: str,
    *,
    with_states: bool,
    max_tokens: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> Reference:
    """One forward pass over all rows of a model without (or before) an adapter.

    Args:
        loaded: The model.
        rows: The rows, each with at least one target.
        span: `completion` or `all`: the targets of each row (`TokenizedExample.targets`).
        with_states: Whether to keep the hidden states.
        max_tokens: Padded area of one forward pass.
        progress: Called with the number of rows that have just been done.
    """
    logps: list[Tensor] = [torch.empty(0)] * len(rows)
    states: list[Tensor] = [torch.empty(0)] * len(rows)
    for group in micro_batches([len(row) for row in rows], max_tokens):
        input_ids = pad_right([rows[index].input_ids for index in group], loaded.device)
        final = final_states(loaded, input_ids)
        batch = [rows[index] for index in group]
        row_index, positions = target_index(batch, span, loaded.device)
        own = final[row_index, positions - 1]
        sizes = [len(row.targets(span)) for row in batch]
        batch_logps = token_logps(own, loaded.head, input_ids[row_index, positions])
        batch_states = own.to(own.dtype if loaded.head.weight is None else loaded.head.weight.dtype)
        for index, row_logps in zip(group, batch_logps.split(sizes), strict=True):
            logps[index] = row_logps
        if with_states:
            for index, row_states in zip(group, batch_states.split(sizes), strict=True):
                states[index] = row_states
        if progress:
            progress(len(group))
    return Reference(logps, states if with_states else None)
