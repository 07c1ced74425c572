"""What the machine offers and what a run uses of it: device, precision, compilation, threads."""

from __future__ import annotations

import ctypes
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cram_composer.config.schema.run import RunConfig
from cram_composer.errors import CramError

if TYPE_CHECKING:
    from composer.core import Precision

# Composer, which takes seconds to import, comes after what a run asks for meanwhile (ahead.py).

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # <malloc.h>
_NO_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class DeviceChoice:
    """The device of this process and how it computes."""

    name: str  # cpu | gpu, Composer's names
    precision: str  # bf16 | fp16 | fp32
    compile: str  # regional | full | off
    threads: int

    @property
    def composer_precision(self) -> Precision:
        """Composer's precision; on a CPU it refuses AMP, so the model's own forward autocasts there."""
        from composer.core import Precision

        if self.name == "cpu" or self.precision == "fp32":
            return Precision.FP32
        return Precision.AMP_BF16 if self.precision == "bf16" else Precision.AMP_FP16

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The dtype that the model's forward autocasts to by itself."""
        return torch.bfloat16 if self.name == "cpu" and self.precision == "bf16" else None


def choose_device(config: RunConfig, local_world_size: int) -> DeviceChoice:
    """Settle every `auto` of the configuration. Raises CramError when the machine has not what was asked for."""
    kind = device_kind(config.device, "without one, run yamls/cram-cpu.yaml")
    name = "gpu" if kind == "cuda" else "cpu"
    precision: str = config.train.precision
    if precision == "auto":
        precision = fast_precision(kind)
    if precision == "fp16" and name == "cpu":
        raise CramError("train.precision: fp16 needs a GPU; use bf16 or fp32")
    compile_mode: str = config.train.compile
    if compile_mode == "auto":
        # On a CPU Inductor writes C++; without a compiler there is nothing to gain.
        compiler = name == "gpu" or shutil.which(os.environ.get("CXX", "g++")) is not None
        compile_mode = "regional" if compiler else "off"
    threads = config.train.threads or max(1, len(os.sched_getaffinity(0)) // local_world_size)
    return DeviceChoice(name, precision, compile_mode, threads)


def set_up_cpu(threads: int, trains_here: bool = True) -> None:
    """Compute with `threads` threads; if the CPU `trains_here`, keep what tensors free for those of the next step.

    Also then, torch.compile starts no processes that compile for GPUs: they would take this CPU's time from the set-up.

    glibc otherwise gives large blocks back to the system when they are freed and has them filled with zeros again page
    by page, in every step: a quarter of the speed of a small model (benchmarks/RESULTS.md).
    """
    torch.set_num_threads(threads)
    if trains_here:
        os.environ.setdefault("TORCH_WARM_POOL", "0")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; other C libraries have none
    if trains_here and mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _NO_LIMIT)
        mallopt(_M_MMAP_MAX, 0)


def device_kind(asked: str, otherwise: str) -> str:
    """ "cuda" or "cpu" for "auto" or either. Raises CramError, with what to do `otherwise`, where there is none."""
    cuda = torch.cuda.is_available()
    if asked == "cuda" and not cuda:
        raise CramError(f"device: cuda was asked for, but torch sees no CUDA GPU here; {otherwise}")
    return ("cuda" if cuda else "cpu") if asked == "auto" else asked


def fast_precision(device: str) -> str:
    """The fastest of bf16, fp16 and fp32 that `device`, "cuda" or "cpu", has in hardware."""
    if device == "cpu":
        return "bf16" if _cpu_has_bf16() else "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware; elsewhere it is slower than fp32."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.is_file() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags
