"""What the machine does: memory that a process takes, and how fast its matrix products are."""

import ctypes
import gc
import platform
import resource
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from expunge.model.load import LoadedModel

MATRIX_ROWS = {"cpu": 1024, "cuda": 8192}
"""Tokens of the matrix products whose rate is measured, per device type."""
RATE_SECONDS = 0.3
"""Time spent on each size of matrix."""


class Memory:
    """Peak memory above what is there at the start: allocated by CUDA tensors, or resident in the process."""

    def __init__(self, device: torch.device) -> None:
        gc.collect()
        self._cuda = device.type == "cuda"
        self.method = "torch.cuda.max_memory_allocated"
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
            return
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # what loading has freed would hide what training takes
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.method, self.start = "VmHWM, reset", self._status("VmRSS")
        except OSError:
            self.method, self.start = "ru_maxrss, of the whole process", self._largest()
            if Path("/proc/self/status").exists():
                self.start = self._status("VmRSS")

    def peak(self) -> int:
        """Bytes, the start's included."""
        if self._cuda:
            return torch.cuda.max_memory_allocated()
        return self._status("VmHWM") if self.method == "VmHWM, reset" else self._largest()

    @staticmethod
    def _status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

    @staticmethod
    def _largest() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def matrix_sizes(loaded: LoadedModel) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(outputs, inputs) of every linear layer of the backbone, and of the head."""
    output = loaded.base.get_output_embeddings()
    modules = [module for module in loaded.base.modules() if isinstance(module, torch.nn.Linear)]
    backbone = [(module.out_features, module.in_features) for module in modules if module is not output]
    return backbone, [(output.out_features, output.in_features)]


def matrix_rate(sizes: list[tuple[int, int]], dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the model's own matrix products, forward (x W') and backward (g W), in their share of its work."""
    flops = seconds = 0.0
    for (outputs, inputs), count in Counter(sizes).items():
        weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
        hidden, grad = (
            torch.randn(MATRIX_ROWS[device.type], size, device=device, dtype=dtype) for size in (inputs, outputs)
        )
        times: list[float] = []
        while sum(times) < RATE_SECONDS or len(times) < 3:
            begun = clock(device)
            torch.nn.functional.linear(hidden, weight)
            grad @ weight
            times.append(clock(device) - begun)
        flops += count * 4 * len(hidden) * outputs * inputs
        seconds += count * statistics.median(times)
    return flops / seconds


def clock(device: torch.device) -> float:
    """Seconds, once the device has done all that was asked of it.

    On the CPU with one thread those that this process has computed, so that what else the machine does counts little.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def processor() -> str:
    """Processor, as the system names it."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
