"""Final hidden states and per-token log-probabilities of token sequences.

Sequences are padded on the right and no attention mask is passed: under causal attention a real token never sees
what stands after it, so padding cannot change a result, whatever side the tokenizer pads on.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from expunge.data.batches import micro_batches
from expunge.data.tokenize import TokenizedExample
from expunge.kernels import token_logps
from expunge.model.head import backbone
from expunge.model.load import LoadedModel


def pad_right(sequences: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Token ids as one `(rows, longest)` tensor; what fills it up is never looked at."""
    rows = [torch.tensor(ids, dtype=torch.long) for ids in sequences]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0).to(device)


def final_states(loaded: LoadedModel, input_ids: Tensor) -> Tensor:
    """Final hidden states `(rows, length, hidden)`, or the logits when the head takes the plain path."""
    with loaded.autocast():
        if loaded.head.weight is None:
            return loaded.base(input_ids=input_ids, use_cache=False).logits
        return backbone(loaded.base)(input_ids=input_ids, use_cache=False).last_hidden_state


def target_index(rows: Sequence[TokenizedExample], span: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the targets of `rows` stand in a padded batch of them: row and position, each `(targets,)` int64."""
    ranges = [row.targets(span) for row in rows]
    row_index = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(r) for r in ranges]))
    positions = torch.cat([torch.arange(r.start, r.stop) for r in ranges])
    return row_index.to(device), positions.to(device)


@torch.no_grad()
def sequence_logps(
    loaded: LoadedModel,
    sequences: Sequence[Sequence[int]],
    *,
    max_tokens: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """Log-probability (nats) of every token but the first of each sequence, given what stands before it.

    Args:
        loaded: The model.
        sequences: Token ids.
        max_tokens: Padded area of one forward pass.
        progress: Called with the number of sequences that have just been done.

    Returns:
        For each sequence an fp32 tensor of its length less one, on the CPU.
    """
    results: list[Tensor] = [torch.empty(0)] * len(sequences)
    for group in micro_batches([len(ids) for ids in sequences], max_tokens):
        input_ids = pad_right([sequences[row] for row in group], loaded.device)
        lengths = [len(sequences[row]) for row in group]
        kept = torch.arange(input_ids.shape[1] - 1)[None] < torch.tensor(lengths)[:, None] - 1
        kept = kept.to(loaded.device)
        states = final_states(loaded, input_ids)[:, :-1][kept]
        logps = token_logps(states, loaded.head, input_ids[:, 1:][kept]).float().cpu()
        for row, own in zip(group, logps.split([length - 1 for length in lengths]), strict=True):
            results[row] = own
        if progress:
            progress(len(group))
    return results


def mean_losses(
    loaded: LoadedModel,
    sets: Mapping[str, Sequence[TokenizedExample]],
    *,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Mean negative log-likelihood of the completion tokens of each set that is not empty, in nats per token."""
    losses = {}
    for name, rows in sets.items():
        if rows:
            logps = sequence_logps(loaded, [row.input_ids for row in rows], progress=progress)
            own = [values[row.targets("completion").start - 1 :] for row, values in zip(rows, logps, strict=True)]
            losses[name] = -torch.cat(own).mean().item()
    return losses
