"""How much memory there is, and whether a model fits into it: asked before anything large is loaded."""

from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from expunge.errors import ModelError
from expunge.utils.text import show_bytes

STORED_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
WIDENED = {"F8_E4M3": 1, "F8_E5M2": 1, "U8": 2}
"""Values in one element of the formats that are widened on load: a byte of MXFP4 holds two (its scales, a byte for 16
of them, count as such)."""
CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
"""Limit and use of the container that the process runs in, versions 2 and 1."""


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device; None where the system does not say."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what is kept for the next tensors is free; what graphs keep for theirs is not
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    for limit, used in CGROUPS:
        try:
            free = min(free, int(limit.read_text()) - int(used.read_text()) + _reclaimable(limit.parent))
        except (OSError, ValueError):  # no such file, or the word "max"
            continue
    return max(0, free)


def weight_bytes(headers: Iterable[Mapping[str, Any]], dtype: torch.dtype | None, *, quantized: bool = False) -> int:
    """Size in memory of the weights that safetensors headers describe.

    Args:
        headers: Of each file: tensor -> dtype and shape.
        dtype: What they are loaded in; as stored when None.
        quantized: Whether they are in a format that is widened on load, to bfloat16 when `dtype` is None. Bytes are
            masks elsewhere, and stay what they are.
    """

    def size(entry: Mapping[str, Any]) -> int:
        kind = entry["dtype"]
        if quantized and kind in WIDENED:
            return WIDENED[kind] * (dtype or torch.bfloat16).itemsize
        return dtype.itemsize if dtype and kind in STORED_BYTES else STORED_BYTES.get(kind, 1)

    return sum(prod(entry["shape"]) * size(entry) for header in headers for entry in header.values())


def check_fits(needed: int, device: torch.device, what: str, mend: str) -> None:
    """Refuse what cannot fit, instead of being killed by the system half way.

    Raises:
        ModelError: `needed` bytes are not free on the device.
    """
    free = free_memory(device)
    if free is not None and needed > free:
        raise ModelError(f"{what} needs about {show_bytes(needed)} and {show_bytes(free)} is free on {device}: {mend}")


def saved_bytes(model: torch.nn.Module, forward: Callable[[], object]) -> int:
    """Bytes that a forward pass keeps for its backward pass, the model's own weights and buffers aside."""
    plain = (tensor for tensor in (*model.parameters(), *model.buffers()) if not isinstance(tensor, DTensor))
    known = {tensor.untyped_storage().data_ptr() for tensor in plain}
    alive = []  # to the end: so that no address is used twice, and layers that were put together from shards are empty

    def note(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        forward()
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in alive}
    return sum(size for address, size in storages.items() if address not in known)


def _reclaimable(cgroup: Path) -> int:
    """Pages of files in a container's memory, which the system takes back when it needs room."""
    for line in (cgroup / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0
