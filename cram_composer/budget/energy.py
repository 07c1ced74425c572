"""Energy of the GPUs during training, from NVML's counter."""

from __future__ import annotations

import math
from typing import Any

import torch
from composer.devices import Device
from composer.utils import dist

from cram_composer.jobs.nvml import open_nvml


class EnergyMeter:
    """Joules drawn by the GPUs of this run between `start` and `stop` (NVML total energy consumption, in mJ).

    Each rank reads its own GPU and the result is the sum; None if a rank has no counter.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._before = math.nan

    def start(self) -> None:
        """Read this rank's counter."""
        self._before = _joules(self._device)

    def stop(self) -> dict[str, Any] | None:
        """Return the energy since `start`, None if it was not measured. Collective."""
        spent = torch.tensor([_joules(self._device) - self._before], dtype=torch.float64)
        spent = self._device.tensor_to_device(spent)
        dist.all_reduce(spent)
        joules = float(spent)
        if not math.isfinite(joules):
            return None
        return {"joules": joules, "source": "NVML total energy consumption, since the last start of the run"}


def _joules(device: Device) -> float:
    if device.name != "gpu":
        return math.nan
    with open_nvml() as nvml:
        if nvml is not None:
            # By UUID, because CUDA_VISIBLE_DEVICES renumbers torch's devices but not NVML's.
            uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
            handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000.0)
    return math.nan
