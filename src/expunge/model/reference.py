"""What the untouched model says of every token that a loss term acts on, computed once before training.

The reference is the same weights with the adapter off. Its head is frozen, so the final hidden state of a token fixes
the token's whole distribution: NPO needs one number per forget token, the exact KL `hidden` numbers per retain token.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from expunge.data.sampler import micro_batches
from expunge.data.tokenize import TokenizedExample, hash_rows
from expunge.errors import ModelError
from expunge.kernels import token_logps
from expunge.model.load import LoadedModel
from expunge.model.logps import PASS_TOKENS, final_states, in_halves, lay_out, target_positions
from expunge.model.memory import free_memory
from expunge.model.tensor_file import FileTensor, TensorFile
from expunge.utils.distributed import ALONE, Processes
from expunge.utils.files import fingerprint
from expunge.utils.text import show_bytes

MEMORY_BYTES = 2**28
"""A reference up to this size stays in main memory; a larger one goes to a file, if there is a folder for it."""
PART = 2**16
"""Targets of which processes exchange values at once."""
FILE_NAME = "reference-{node}.safetensors"
"""One file on each machine, whose processes write it together."""

What = Literal["logps", "states"]
Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Name -> dtype and shape of its flat tensor."""


class RowValues:
    """Values of all targets of many rows in one flat tensor; `values[row]` gives those of one row.

    Args:
        flat: `(targets,)` or `(targets, hidden)`, in main memory or in a file.
        sizes: Targets of each row.
    """

    def __init__(self, flat: Tensor | FileTensor, sizes: Sequence[int]) -> None:
        self.flat = flat
        self._starts = [0, *accumulate(sizes)]

    def __getitem__(self, row: int) -> Tensor:
        return self.flat[self._starts[row] : self._starts[row + 1]]

    def __setitem__(self, row: int, values: Tensor) -> None:
        self.flat[self._starts[row] : self._starts[row + 1]] = values


@dataclass(frozen=True)
class Asked:
    """What is needed of one set of rows.

    Attributes:
        rows: The rows.
        span: Their targets: `completion` or `all`.
        what: `logps` for log-probabilities (nats, fp32), `states` for the final hidden states that predict the targets,
            in the dtype that the head multiplies in (so rounding loses nothing).
        private: They never leave the memory: the model's head says the texts from their states.
    """

    rows: Sequence[TokenizedExample]
    span: str
    what: What
    private: bool = False

    def sizes(self) -> list[int]:
        """Targets of each row."""
        return [len(row.targets(self.span)) for row in self.rows]


def reference_layout(loaded: LoadedModel, sides: dict[str, Asked]) -> Layout:
    """Dtype and shape of the flat tensor of each side."""
    probe = final_states(loaded, lay_out(loaded, [[0]]))
    states = probe.dtype if loaded.head.weight is None else loaded.head.weight.dtype
    logps = torch.promote_types(probe.dtype, torch.float32)
    return {
        name: (states, (sum(side.sizes()), probe.shape[-1])) if side.what == "states" else (logps, (sum(side.sizes()),))
        for name, side in sides.items()
    }


def layout_bytes(layout: Layout) -> int:
    """Size of all tensors of a layout."""
    return sum(dtype.itemsize * prod(shape) for dtype, shape in layout.values())


def for_file(layout: Layout, sides: dict[str, Asked]) -> Layout:
    """The part of a layout that goes to a file where there is a folder for it: what is not private, if it is large."""
    public = {name: own for name, own in layout.items() if not sides[name].private}
    return public if layout_bytes(public) > MEMORY_BYTES else {}


def memory_bytes(layout: Layout, sides: dict[str, Asked]) -> int:
    """Size of what a run with a folder keeps in main memory all the same."""
    return layout_bytes(layout) - layout_bytes(for_file(layout, sides))


@torch.no_grad()
def compute_reference(
    loaded: LoadedModel,
    sides: dict[str, Asked],
    *,
    folder: Path | None = None,
    key: str = "",
    processes: Processes = ALONE,
    progress: Callable[[int], None] | None = None,
) -> dict[str, RowValues]:
    """One forward pass over all rows with the adapter off; or the file of an earlier one, if it has the same key.

    Args:
        loaded: The model; an adapter in it is switched off for the pass.
        sides: Name -> rows, each row with at least one target.
        folder: Where a reference above `MEMORY_BYTES` is kept, but for what is private; in main memory whatever its
            size when None.
        key: Fingerprint of everything that the values depend on beside the rows.
        processes: Those that share the work. In memory each gets all values; in files, the processes of one machine
            write one together, so nothing has to be sent.
        progress: Called with the number of rows that have just been done.

    Returns:
        Name -> values, on the CPU.

    Raises:
        RunError: The file cannot be written.
        ModelError: What stays in memory does not fit.
    """
    with loaded.adapter_off():
        layout = reference_layout(loaded, sides)
        stored = for_file(layout, sides) if folder else {}
        held, free = layout_bytes(layout) - layout_bytes(stored), free_memory(torch.device("cpu"))
        if free is not None and held * processes.local_count > free:
            raise ModelError(
                f"what the untouched model computes of the texts takes {show_bytes(held)} of main memory in each "
                f"process, and {show_bytes(free)} are free: take fewer texts in one run, or fewer processes"
            )
        memory = {
            name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in layout.items() if name not in stored
        }
        _fill(loaded, {name: sides[name] for name in memory}, memory, progress, processes)
        for flat in memory.values() if processes.count > 1 else ():
            for part in flat.split(PART):
                part.copy_(processes.total(part))
        found: dict[str, Tensor | FileTensor] = {**memory}
        if folder and stored:
            filed = {name: sides[name] for name in stored}
            found |= _filed(loaded, filed, stored, folder, key, progress, processes)
        return {name: RowValues(found[name], side.sizes()) for name, side in sides.items()}


def _filed(
    loaded: LoadedModel,
    sides: dict[str, Asked],
    layout: Layout,
    folder: Path,
    key: str,
    progress: Callable[[int], None] | None,
    processes: Processes,
) -> dict[str, FileTensor]:
    """The values of some sides in a file, which the processes of a machine write, or which is there."""
    local = processes.on_this_machine()
    node = processes.index // local.count
    file = TensorFile(folder / FILE_NAME.format(node=node), layout, fingerprint(key, *_parts(sides)))
    if processes.any(not file.complete()):
        try:
            if local.index == 0:
                file.create()
            processes.wait()
            _fill(loaded, sides, file.tensors(partial=True), progress, local)
            processes.wait()
            if local.index == 0:
                file.finish()
            processes.wait()
        finally:
            if local.index == 0:
                file.partial.unlink(missing_ok=True)
    return file.tensors()


def _parts(sides: dict[str, Asked]) -> Iterator[str]:
    """What the values of some sides are of: replay texts are sampled anew, on another machine perhaps to others."""
    for name, side in sides.items():
        yield f"{name} {side.span} {side.what} {hash_rows(side.rows)}"


@contextmanager
def cache_folder(path: Path, processes: Processes = ALONE) -> Iterator[Path]:
    """A folder for the reference of one run: it goes when the run ends or fails, and stays when it is interrupted.

    What it holds are activations of retain and replay texts. An interrupted run goes on from it.
    """
    try:
        yield path
    except KeyboardInterrupt:
        raise
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    processes.wait()  # another one may still read
    if processes.index == 0 and path.exists():  # one folder for all machines
        shutil.rmtree(path)


def _fill(
    loaded: LoadedModel,
    sides: dict[str, Asked],
    flats: dict[str, Tensor] | dict[str, FileTensor],
    progress: Callable[[int], None] | None,
    processes: Processes,
) -> None:
    values = {name: RowValues(flats[name], side.sizes()) for name, side in sides.items()}
    area = PASS_TOKENS[loaded.device.type]
    together: dict[tuple[int, str], list[str]] = {}
    for name, side in sides.items():
        together.setdefault((id(side.rows), side.span), []).append(name)
    for names in together.values():  # of the same targets: one pass gives all that is asked of them
        side = sides[names[0]]
        lengths = [len(row) for row in side.rows]
        work = partial(_passed, loaded, side.rows, side.span, [sides[name].what for name in names])
        for number, group in enumerate(micro_batches(lengths, area, packed=loaded.packs(lengths))):
            if progress:
                progress(len(group) * len(names))
            if not processes.is_own(number):
                continue
            for index, found in zip(group, in_halves(loaded, group, work), strict=True):
                for name, own in zip(names, found, strict=True):
                    values[name][index] = own
    loaded.join()


def _passed(
    loaded: LoadedModel, rows: Sequence[TokenizedExample], span: str, asked: list[str], group: list[int]
) -> list[tuple[Tensor, ...]]:
    """For each row of a group what is asked of its targets, from one forward pass."""
    own = [rows[index] for index in group]
    batch = lay_out(loaded, [row.input_ids for row in own])
    positions = target_positions(batch, own, span)
    states = final_states(loaded, batch)[positions - 1]
    sizes = [len(row.targets(span)) for row in own]
    found = [
        token_logps(states, loaded.head, batch.flat_ids[positions]) if what == "logps" else states for what in asked
    ]
    return list(zip(*(torch.split(values.cpu(), sizes) for values in found), strict=True))  # one transfer a pass
