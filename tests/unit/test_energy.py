"""The energy counter of a device: joules where it tells, nothing where it does not."""

import ctypes

import pytest
import torch

from expunge.model.energy import energy_joules, nvml_joules


class Library:
    """The management library on a machine with one GPU."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.calls: list[str] = []

    def __getattr__(self, name: str):
        def call(*arguments) -> int:
            self.calls.append(name)
            if name == self.failing:
                return 3  # not supported
            if name == "nvmlDeviceGetHandleByUUID":
                assert arguments[0] == b"GPU-1-2"
                arguments[1]._obj.value = 77
            if name == "nvmlDeviceGetTotalEnergyConsumption":
                assert arguments[0].value == 77
                assert isinstance(arguments[1]._obj, ctypes.c_ulonglong)
                arguments[1]._obj.value = 12_345_678_901_234
            return 0

        return call


def test_millijoules_of_the_device_are_given_in_joules():
    library = Library()
    assert nvml_joules(library, "GPU-1-2") == 12_345_678_901.234
    assert library.calls[-1] == "nvmlShutdown"


@pytest.mark.parametrize("failing", ["nvmlInit_v2", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetTotalEnergyConsumption"])
def test_a_device_that_does_not_tell_gives_nothing(failing):
    library = Library(failing)
    assert nvml_joules(library, "GPU-1-2") is None
    assert library.calls.count("nvmlShutdown") == (failing != "nvmlInit_v2")


def test_a_cpu_does_not_tell():
    assert energy_joules(torch.device("cpu")) is None
