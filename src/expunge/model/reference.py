"""What the untouched model says of every token that a loss term acts on, computed once before training.

The reference is the same weights with the adapter off. Its head is frozen, so the final hidden state of a token fixes
the token's whole distribution: NPO needs one number per forget token, the exact KL `hidden` numbers per retain token.
It stays in main memory, and only rows that a step visits are looked at.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor

from expunge.data.tokenize import TokenizedExample
from expunge.errors import ModelError
from expunge.kernels import token_logps
from expunge.model.load import LoadedModel
from expunge.model.logps import final_states, lay_out, passes, target_states
from expunge.model.memory import free_memory
from expunge.utils.distributed import ALONE, Processes
from expunge.utils.text import show_bytes

PART = 2**16
"""Targets of which processes exchange values at once."""

Values = dict[int, Tensor]
"""Row -> values of its targets, `(targets,)` or `(targets, hidden)`, on the CPU."""
Layout = dict[tuple[str, str], tuple[torch.dtype, tuple[int, ...]]]
"""Name and what is needed -> dtype and shape of the values of all rows together."""


@dataclass(frozen=True)
class Asked:
    """What is needed of one set of rows.

    Attributes:
        rows: Number of the row -> the row.
        span: Their targets: `completion` or `all`.
        what: `ref_logps` for log-probabilities (nats, fp32), `ref_states` for the final hidden states that predict the
            targets, in the dtype that the head multiplies in (so rounding loses nothing).
    """

    rows: Mapping[int, TokenizedExample]
    span: str
    what: Sequence[str]

    def sizes(self) -> list[int]:
        """Targets of each row."""
        return [len(row.targets(self.span)) for row in self.rows.values()]


def reference_layout(loaded: LoadedModel, sides: Mapping[str, Asked]) -> Layout:
    """Dtype and shape of what is computed of each side."""
    probe = final_states(loaded, lay_out(loaded, [[0]]))
    states = probe.dtype if loaded.head.weight is None else loaded.head.weight.dtype
    forms: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "ref_logps": (torch.promote_types(probe.dtype, torch.float32), ()),
        "ref_states": (states, probe.shape[-1:]),
    }
    layout: Layout = {}
    for name, side in sides.items():
        for what in side.what:
            dtype, shape = forms[what]
            layout[name, what] = dtype, (sum(side.sizes()), *shape)
    return layout


def layout_bytes(layout: Layout) -> int:
    """Main memory that a reference takes in each process."""
    return sum(dtype.itemsize * prod(shape) for dtype, shape in layout.values())


@torch.no_grad()
def compute_reference(
    loaded: LoadedModel,
    sides: Mapping[str, Asked],
    *,
    processes: Processes = ALONE,
    progress: Callable[[int], None] | None = None,
) -> dict[str, dict[str, Values]]:
    """One forward pass over all rows with the adapter off.

    Args:
        loaded: The model; an adapter in it is switched off for the pass.
        sides: Name -> rows, each row with at least one target.
        processes: Those that share the work; each gets all values.
        progress: Called with the number of rows that have just been done.

    Returns:
        Name -> what is needed -> values of each row.

    Raises:
        ModelError: The main memory is too small for it.
    """
    with loaded.adapter_off():
        layout = reference_layout(loaded, sides)
        check_room(layout, processes)
        flats = {place: torch.zeros(shape, dtype=dtype) for place, (dtype, shape) in layout.items()}
        found: dict[str, dict[str, Values]] = {}
        for name, side in sides.items():
            parts = {what: flats[name, what].split(side.sizes()) for what in side.what}
            found[name] = {what: dict(zip(side.rows, tensors, strict=True)) for what, tensors in parts.items()}
            rows = list(side.rows.values())
            work = partial(_passed, loaded, rows, side)
            for place, values in passes(loaded, rows, work, processes=processes, progress=progress):
                for what, value in zip(side.what, values, strict=True):
                    parts[what][place].copy_(value)
        for flat in flats.values() if processes.count > 1 else ():
            for part in flat.split(PART):
                part.copy_(processes.total(part))
        return found


def check_room(layout: Layout, processes: Processes = ALONE) -> int:
    """The bytes that a reference takes, which each process of a machine holds.

    Raises:
        ModelError: The main memory is too small for it.
    """
    held, free = layout_bytes(layout), free_memory(torch.device("cpu"))
    if free is not None and held * processes.local_count > free:
        raise ModelError(
            f"what the untouched model computes of the texts takes {show_bytes(held)} of main memory in each "
            f"process, and {show_bytes(free)} are free: take fewer texts in one run, or fewer processes"
        )
    return held


def _passed(
    loaded: LoadedModel, rows: Sequence[TokenizedExample], side: Asked, group: list[int]
) -> list[tuple[Tensor, ...]]:
    """For each row of a group what is asked of its targets, from one forward pass."""
    targets = [rows[place].targets(side.span) for place in group]
    states, ids = target_states(loaded, [rows[place].input_ids for place in group], targets)
    found = [token_logps(states, loaded.head, ids) if what == "ref_logps" else states for what in side.what]
    sizes = [*map(len, targets)]
    return list(zip(*(torch.split(values.cpu(), sizes) for values in found), strict=True))  # one transfer a pass
