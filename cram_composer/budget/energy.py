"""Energy of the GPUs while the loop runs, from NVML's own counter; nothing where there is none."""

from __future__ import annotations

from typing import Any


class EnergyMeter:
    """Joules drawn by all visible NVIDIA GPUs between `start` and `stop` (NVML total energy consumption, in mJ)."""

    def __init__(self) -> None:
        self._before: float | None = None

    def start(self) -> None:
        """Read the counters."""
        self._before = _total_joules()

    def stop(self) -> dict[str, Any] | None:
        """The energy since `start`, None if it was not measured."""
        after = _total_joules()
        if self._before is None or after is None:
            return None
        return {"joules": after - self._before, "source": "NVML total energy consumption, this start of the run"}


def _total_joules() -> float | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        devices = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(device) for device in devices) / 1000.0
    except pynvml.NVMLError:
        return None
