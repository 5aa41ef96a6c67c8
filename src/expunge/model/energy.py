"""The energy that a device has used, where the device itself counts it."""

import ctypes
from typing import Any

import torch

NVML = "libnvidia-ml.so.1"


def energy_joules(device: torch.device) -> float | None:
    """What the device has used since its driver was loaded, whoever used it; None where it does not tell.

    NVIDIA GPUs count from the Volta generation on. Counters of CPUs run over every few minutes under load and tell only
    the administrator, so that no energy is given for them.
    """
    if device.type != "cuda":
        return None
    try:
        library = ctypes.CDLL(NVML)
    except OSError:
        return None
    return nvml_joules(library, f"GPU-{torch.cuda.get_device_properties(device).uuid}")


def nvml_joules(library: Any, uuid: str) -> float | None:
    """The counter of one GPU; None where the library answers any call with an error.

    Args:
        library: The NVIDIA management library.
        uuid: The GPU, as `GPU-...`.
    """
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    if library.nvmlInit_v2():
        return None
    try:
        if library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)):
            return None
        if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
            return None
    finally:
        library.nvmlShutdown()
    return millijoules.value / 1000
