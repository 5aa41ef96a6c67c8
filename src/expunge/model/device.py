"""Where a model computes, in which precision, and how the memory of the CPU is set up for it."""

import ctypes
import os
import sys
from collections.abc import Sequence

import torch

from expunge.errors import ConfigError, ModelError
from expunge.utils.ranks import from_launcher, launched

CACHED_KERNELS = 128
"""Compiled bf16 products that are kept on the CPU, one per shape: more than one forward and backward pass needs."""
COMPUTED, STORED = ("float32", "bfloat16", "float64"), ("float32", "bfloat16", "float16")
"""Names of the dtypes that products run in, and of those that weights are written in."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h


def pick_device(name: str = "auto") -> torch.device:
    """The device that a `--device` value means.

    Raises:
        ModelError: The device does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":  # each process of a launcher takes a device of its own
        name = f"cuda:{from_launcher('LOCAL_RANK', 0) if launched() else 0}"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("Expunge computes on cpu and cuda")
        torch.zeros(1, device=device).item()  # a device without memory of its own has no item
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The compute dtype that a `--dtype` value means: `auto` is bfloat16 where the hardware multiplies it.

    Raises:
        ConfigError: It means none.
    """
    if name != "auto":
        return dtype_of(name, COMPUTED, "auto")
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def dtype_of(name: str, names: Sequence[str], *others: str) -> torch.dtype:
    """The dtype of a `--dtype` value.

    Args:
        name: The value.
        names: Those that are a dtype here.
        others: What the caller takes beside them, for the message.

    Raises:
        ConfigError: It is none of `names`.
    """
    if name not in names:
        raise ConfigError(f"--dtype {name}: must be one of {', '.join([*others, *names])}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def settle_cuda() -> None:
    """On a GPU, leave cuDNN's attention out, which makes a plan for every new shape, and texts have many of them; and
    add products of bfloat16 numbers up in fp32.

    Where cuBLAS divides the sums of a product among blocks (split-K), it may round the parts to bfloat16, and whether
    it divides them depends on the shape: the same rows padded, packed or filled up to the size of a graph would be
    further apart than the rounding of the result makes them.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def settle_cpu_memory() -> None:
    """Fewer page faults and flat memory on the CPU; settings of the environment win.

    glibc hands large blocks back to the system at once, and fresh pages for every temporary cost a fifth of a step.
    oneDNN and PyTorch each keep the 1,024 last compiled bf16 products, one per shape, and a run has many shapes. Both
    read their bound at the first product of a process.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(CACHED_KERNELS))
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # musl has none, and no such cost
        mallopt(_M_MMAP_THRESHOLD, 2**30 - 1)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
