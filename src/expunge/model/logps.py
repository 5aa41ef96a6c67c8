"""Final hidden states and per-token log-probabilities of token sequences.

Sequences stand one behind the other where the model can do that. Else they are padded on the right and no attention
mask is passed: under causal attention a real token never sees what stands after it, so padding cannot change a
result, whatever side the tokenizer pads on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from expunge.data.sampler import micro_batches
from expunge.data.tokenize import TokenizedExample
from expunge.kernels import token_logps
from expunge.kernels.rounding import missing_rows
from expunge.model.limits import check_lengths, check_tokens
from expunge.model.load import LoadedModel
from expunge.model.packing import packed_states, send
from expunge.utils.distributed import ALONE, Processes

Item = TypeVar("Item")
Result = TypeVar("Result")
PASS_TOKENS = {"cpu": 8192, "cuda": 16384}
"""Padded area of one forward pass without gradients, per device type."""


def pad_right(sequences: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Token ids as one `(rows, longest)` tensor; what fills it up is never looked at."""
    rows = [torch.tensor(ids, dtype=torch.long) for ids in sequences]
    return send(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0), device)


@dataclass(frozen=True)
class Batch:
    """Sequences as the model takes them.

    Attributes:
        input_ids: `(1, tokens)` when packed, a few more than in the sequences at times, else `(rows, longest)`.
        lengths: Tokens of each sequence.
        starts: Where the first token of each stands in the flattened `input_ids`.
        packed: Which of the two.
    """

    input_ids: Tensor
    lengths: list[int]
    starts: list[int]
    packed: bool

    @property
    def flat_ids(self) -> Tensor:
        """All token ids `(positions,)`."""
        return self.input_ids.flatten()


def lay_out(loaded: LoadedModel, sequences: Sequence[Sequence[int]]) -> Batch:
    """Put sequences into one batch: packed when `loaded.packs` them, else padded.

    Raises:
        DataError: One is longer than the model's context.
    """
    lengths = [len(ids) for ids in sequences]
    check_lengths(loaded.base, lengths)
    check_tokens(loaded.base, sequences)
    if loaded.packs(lengths):
        ids = [token for sequence in sequences for token in sequence]
        # Not with the padding token: of a row of zero embeddings the gradient of some models is not finite.
        ids += ids[-1:] * missing_rows(len(ids), loaded.row_multiple)
        starts = [0, *accumulate(lengths[:-1])]
        return Batch(send(torch.tensor([ids]), loaded.device), lengths, starts, packed=True)
    longest = max(lengths)
    return Batch(
        pad_right(sequences, loaded.device), lengths, [row * longest for row in range(len(lengths))], packed=False
    )


def final_states(loaded: LoadedModel, batch: Batch) -> Tensor:
    """Final hidden states `(positions, hidden)`, or the logits when the head takes the plain path."""
    with loaded.autocast():
        captured = loaded.captured if batch.packed and torch.is_grad_enabled() else None
        if captured is not None and captured.takes(batch.lengths):
            return captured.states(batch.input_ids, batch.lengths)
        if batch.packed:
            return packed_states(loaded.base, batch.input_ids, batch.lengths)[0]
        return loaded.final(batch.input_ids, use_cache=False).flatten(0, 1)


def target_states(
    loaded: LoadedModel, sequences: Sequence[Sequence[int]], targets: Sequence[range]
) -> tuple[Tensor, Tensor]:
    """What predicts the tokens at some places of each sequence, and these tokens, from one forward pass.

    Returns:
        Final hidden states `(targets, hidden)`, as of `final_states`, and token ids `(targets,)`, one sequence's behind
        the other's.
    """
    batch = lay_out(loaded, sequences)
    ranges = zip(batch.starts, targets, strict=True)
    places = torch.cat([torch.arange(start + span.start, start + span.stop) for start, span in ranges])
    places = send(places, loaded.device)
    return final_states(loaded, batch)[places - 1], batch.flat_ids[places]


def in_halves(loaded: LoadedModel, items: list[Item], work: Callable[[list[Item]], list[Result]]) -> list[Result]:
    """`work(items)`, a result for each: in two halves where the device's memory is too small for all of them at once.

    Raises:
        OutOfMemoryError: It is too small for a single one, or processes wait in the middle of their passes.
    """
    try:
        return work(items)
    except torch.OutOfMemoryError:
        if len(items) == 1 or loaded.lockstep is not None:
            raise
    torch.cuda.empty_cache()  # outside of the handler, which holds the tensors of the failed pass
    half = len(items) // 2
    return in_halves(loaded, items[:half], work) + in_halves(loaded, items[half:], work)


def passes(
    loaded: LoadedModel,
    rows: Sequence[Sized],
    work: Callable[[list[int]], list[Result]],
    *,
    processes: Processes = ALONE,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, Result]]:
    """Forward passes over rows, longest first; one that does not fit into the device's memory is done in halves.

    To be gone through to the end: processes that share the base wait for each other there.

    Args:
        loaded: The model.
        rows: What has as many tokens as it is long.
        work: From indices of `rows` that one pass takes to a result for each.
        processes: Those that share the passes.
        progress: Called with the number of rows that have just been done, by whichever process.

    Yields:
        Index and result of each row of this process's own passes.
    """
    lengths, area = [len(row) for row in rows], PASS_TOKENS[loaded.device.type]
    for number, group in enumerate(micro_batches(lengths, area, packed=loaded.packs(lengths))):
        if processes.is_own(number):
            yield from zip(group, in_halves(loaded, group, work), strict=True)
        if progress:
            progress(len(group))
    loaded.join()


@torch.no_grad()
def sequence_logps(
    loaded: LoadedModel,
    sequences: Sequence[Sequence[int]],
    *,
    processes: Processes = ALONE,
    progress: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """Log-probability (nats) of every token but the first of each sequence, given what stands before it.

    Args:
        loaded: The model.
        sequences: Token ids.
        processes: Those that share the work; each gets all results.
        progress: Called with the number of sequences that have just been done.

    Returns:
        For each sequence an fp32 tensor of its length less one, on the CPU.
    """
    sizes = [len(ids) - 1 for ids in sequences]
    results = list(torch.split(torch.zeros(sum(sizes)), sizes))

    def passed(group: list[int]) -> list[Tensor]:
        targets = [range(1, len(sequences[row])) for row in group]
        states, ids = target_states(loaded, [sequences[row] for row in group], targets)
        return list(torch.split(token_logps(states, loaded.head, ids).float().cpu(), [*map(len, targets)]))

    for row, values in passes(loaded, sequences, passed, processes=processes, progress=progress):
        results[row].copy_(values)
    if processes.count == 1:
        return results
    return list(torch.split(processes.total(torch.cat(results)), sizes))


def mean_losses(
    loaded: LoadedModel,
    sets: Mapping[str, Sequence[TokenizedExample]],
    *,
    processes: Processes = ALONE,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Mean negative log-likelihood of the completion tokens of each set that is not empty, in nats per token.

    The processes share the forward passes; the mean is taken over the same values however many they are.
    """
    losses = {}
    for name, rows in sets.items():
        if rows:
            logps = sequence_logps(loaded, [row.input_ids for row in rows], processes=processes, progress=progress)
            parts = [values[row.targets("completion").start - 1 :] for row, values in zip(rows, logps, strict=True)]
            losses[name] = -torch.cat(parts).mean().item()
    return losses
