"""From the rows of a micro-batch to what the losses see, built once: one layout, one forward pass, one gather."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from expunge.data.tokenize import TokenizedExample
from expunge.losses.batch import TokenBatch
from expunge.model.layers import captured_states
from expunge.model.load import LoadedModel
from expunge.model.logps import final_states, lay_out
from expunge.model.packing import send
from expunge.model.reference import Values

SIDES = ("forget", "pairs", "instead", "retain", "replay")
"""The sides of a run, in the order in which their rows stand in a micro-batch."""


@dataclass
class SideRows:
    """All rows of one side, and what is known of their targets before training.

    Attributes:
        rows: The rows, which steps point into.
        span: Their targets: `completion` or `all` tokens.
        values: `ref_logps`, `ref_states` or `target_nll` -> row -> the values of its targets; at least of each row that
            a step visits.
        guessed: See `TokenBatch`.
        ratio: What the target NLLs of a row are multiplied by where it stands after another text.
    """

    rows: list[TokenizedExample]
    span: str
    values: dict[str, Values] = field(default_factory=dict)
    guessed: bool = True
    ratio: float = 1.0

    def known(self, what: str, at: int) -> Tensor:
        """The values of a row's targets."""
        scaled = what == "target_nll" and self.rows[at].context
        return self.values[what][at] * self.ratio if scaled else self.values[what][at]


@dataclass(frozen=True)
class Counts:
    """Denominators of one side in one step, all micro-batches of all processes together."""

    tokens: int
    completion_lengths: tuple[int, ...]


def count(side: SideRows, chosen: Sequence[int]) -> Counts:
    """The denominators of a step that holds the `chosen` rows of a side."""
    rows = [side.rows[index] for index in chosen]
    return Counts(
        sum(len(row.targets(side.span)) for row in rows),
        tuple(len(row.targets("completion")) for row in rows),
    )


def collate(
    loaded: LoadedModel,
    sides: Mapping[str, SideRows],
    chosen: Mapping[str, Sequence[int]],
    counts: Mapping[str, Counts],
    layer: torch.nn.Module | None = None,
) -> dict[str, TokenBatch]:
    """Lay the rows of a micro-batch out, pass them through the policy, and gather what predicts their targets.

    Args:
        loaded: The policy.
        sides: All rows of each side.
        chosen: Side -> the rows of it that stand in this micro-batch.
        counts: Side -> denominators of the whole step.
        layer: Inner layer whose states the forget loss needs; None for none.

    Returns:
        Side -> its target tokens; a side without rows in the micro-batch is left out.
    """
    names = [name for name in SIDES if chosen.get(name)]
    rows = [(name, sides[name].rows[index]) for name in names for index in chosen[name]]
    batch = lay_out(loaded, [row.input_ids for _, row in rows])
    index = send(_target_index(rows, batch.starts, sides), loaded.device)
    with captured_states(layer) as captured:
        states = final_states(loaded, batch)
    before, sequence, completion = index
    # Not `states[before]`, whose backward pass sorts the places on a GPU, for those that come twice: none does. And not
    # a slice a side: the gradient of each would be filled up with zeros and added to that of the others.
    of_all = states.index_select(0, before), batch.flat_ids[1:][before], sequence, completion.bool()
    sizes = [sum(len(sides[name].rows[at].targets(sides[name].span)) for at in chosen[name]) for name in names]
    predicting, targets, sequences, completions = (values.split(sizes) for values in of_all)
    hidden = captured[0].flatten(0, 1).index_select(0, before + 1).split(sizes) if captured else None
    found: dict[str, TokenBatch] = {}
    for at, name in enumerate(names):
        side, totals, own_rows = sides[name], counts[name], chosen[name]
        values: dict[str, Any] = {
            what: send(torch.cat([side.known(what, row) for row in own_rows]), loaded.device) for what in side.values
        }
        found[name] = TokenBatch(
            states=predicting[at],
            targets=targets[at],
            sequence=sequences[at],
            completion=completions[at],
            head=loaded.head,
            num_sequences_here=len(own_rows),
            num_tokens=totals.tokens,
            completion_lengths=totals.completion_lengths,
            hidden=None if hidden is None or name != "forget" else hidden[at],
            guessed=side.guessed,
            **values,
        )
    if "pairs" in found:
        found["forget"] = replace(found["forget"], pairs=found.pop("pairs"))
    return found


def _target_index(
    rows: Sequence[tuple[str, TokenizedExample]], starts: Sequence[int], sides: Mapping[str, SideRows]
) -> Tensor:
    """`(3, targets)` int64: flat position before each target, its row in its side, whether it is of the completion."""
    number: dict[str, int] = {}
    places = []
    for (name, row), start in zip(rows, starts, strict=True):
        index = number[name] = number.get(name, -1) + 1
        span = row.targets(sides[name].span)
        places.append((start + span.start, index, start + row.completion_start, len(span)))
    first, own_row, completion, sizes = torch.tensor(places).T
    # The same number of operations whatever the rows: position of each target within its own row, counted from 0.
    within = torch.arange(int(sizes.sum())) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    first, own_row, completion = torch.stack([first, own_row, completion]).repeat_interleave(sizes, dim=1)
    return torch.stack([first + within - 1, own_row, (first + within >= completion).long()])
