"""Choice of device, precision, compilation and threads for a run."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cram_composer.config.schema.run import RunConfig
from cram_composer.errors import CramError
from cram_composer.jobs.nvml import open_nvml
from cram_composer.jobs.processes import available_cores

if TYPE_CHECKING:
    from composer.core import Precision
    from composer.devices import Device

# Composer is imported on use: it takes seconds, during which background look-ups run (train/prewarm.py).

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # <malloc.h>
_NO_LIMIT = 2**31 - 1

# In the messages of RuntimeErrors: of torch's CPU allocator, and of threads that cannot be started.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory", "can't start new thread")


@dataclass(frozen=True)
class DeviceChoice:
    """The device of this process and its numeric settings."""

    name: str  # cpu | gpu, Composer's names
    precision: str  # bf16 | fp16 | fp32
    compile: str  # regional | full | off
    threads: int
    adapts_threads: bool  # to the load of the machine, between steps

    @property
    def composer_precision(self) -> Precision:
        """Composer's precision. Composer rejects AMP on a CPU, so the model's own forward autocasts there."""
        from composer.core import Precision

        if self.name == "cpu" or self.precision == "fp32":
            return Precision.FP32
        return Precision.AMP_BF16 if self.precision == "bf16" else Precision.AMP_FP16

    @property
    def composer_device(self) -> Device:
        """Composer's device. Products of fp32 are not rounded to TF32, which Composer does by default on a GPU."""
        from composer.devices import DeviceCPU, DeviceGPU

        return DeviceCPU() if self.name == "cpu" else DeviceGPU(allow_tf32=self.precision != "fp32")

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The dtype to which the model's own forward autocasts; None for no autocast."""
        return torch.bfloat16 if self.name == "cpu" and self.precision == "bf16" else None


def choose_device(config: RunConfig, local_world_size: int) -> DeviceChoice:
    """Resolve every `auto` of the configuration. Raises CramError if the requested device is unavailable."""
    kind = device_kind(config.device, "set device=cpu, or run yamls/cram-cpu.yaml")
    name = "gpu" if kind == "cuda" else "cpu"
    precision: str = config.train.precision
    if precision == "auto":
        precision = fast_precision(kind)
    if precision == "fp16" and name == "cpu":
        raise CramError("train.precision: fp16 needs a GPU; set train.precision=bf16 or fp32")
    if precision == "bf16" and name == "gpu" and fast_precision(kind) != "bf16":
        raise CramError(
            f"train.precision: {torch.cuda.get_device_name()} has no bf16; set train.precision=fp16 or auto"
        )
    if precision == "fp32" and not config.model.residual_in_fp32:
        raise CramError(
            "model.residual_in_fp32: false needs bf16, which this CPU lacks; set model.residual_in_fp32=true"
        )
    compile_mode = _compile_mode(config.train.compile, name)
    if config.train.threads != "auto":
        return DeviceChoice(name, precision, compile_mode, config.train.threads, adapts_threads=False)
    threads = max(1, len(available_cores()) // local_world_size)
    # Without a clock a run repeats itself to the bit, which a changed number of threads would end.
    budget = config.budget
    watches_load = any((budget.wall, budget.device_hours, budget.replay)) and sys.platform == "linux"
    adapts = name == "cpu" and local_world_size == 1 and threads > 1 and watches_load
    return DeviceChoice(name, precision, compile_mode, threads, adapts)


def _compile_mode(requested: str, name: str) -> str:
    """Resolve train.compile. Raises CramError if compilation is requested on a GPU, whose tools are missing."""
    if requested == "off":
        return "off"
    missing = missing_compiler(name)
    if missing is None:
        return "regional" if requested == "auto" else requested
    if requested == "auto":
        if name == "gpu":
            log.warning("train.compile: off, because %s", missing)
        return "off"
    if name == "gpu":
        raise CramError(f"train.compile: {missing}; or set train.compile=off")
    return requested


def missing_compiler(name: str) -> str | None:
    """Return what torch.compile lacks on the device `name`, with the remedy; None if nothing.

    Inductor writes C++ for a CPU. For a GPU, Triton compiles a launcher in C for every kernel, with Python's headers.
    """
    if name == "cpu":
        compiler = os.environ.get("CXX", "g++")
        return None if shutil.which(compiler) else f"there is no C++ compiler ({compiler}); install g++"
    if not any(compiler and shutil.which(compiler) for compiler in (os.environ.get("CC"), "gcc", "clang", "cc")):
        return "Triton needs a C compiler; install gcc"
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.is_file():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"Triton needs {header}, which is missing; install python{version}-dev"
    return None


def set_up_cpu(threads: int, trains_here: bool = True) -> None:
    """Set the number of threads and, if the CPU `trains_here`, keep freed memory for the next step.

    By default glibc returns large freed blocks to the system, which zeroes them again page by page in every step. That
    costs a quarter of the speed of a small model (benchmarks/RESULTS.md). If the CPU trains, torch.compile is also
    kept from starting worker processes for GPU code, which would slow down the set-up.
    """
    torch.set_num_threads(threads)
    if trains_here:
        os.environ.setdefault("TORCH_WARM_POOL", "0")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only
    if trains_here and mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _NO_LIMIT)
        mallopt(_M_MMAP_MAX, 0)


def device_kind(requested: str, instead: str) -> str:
    """Resolve "auto", "cuda" or "cpu" to "cuda" or "cpu".

    Raises:
        CramError: this torch cannot use the GPU; or cuda was requested without a GPU. The error says what to do
            `instead`.
    """
    if requested == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        _check_architecture(instead)
        return "cuda"
    driver = _nvidia_driver()
    if driver is not None:
        version, cuda = driver
        raise CramError(
            f"device: the NVIDIA driver {version} (CUDA {cuda}) is too old for torch {torch.__version__}, which was "
            f"built with CUDA {torch.version.cuda}; update the driver, or {instead}"
        )
    if requested == "cuda":
        raise CramError(f"device: cuda was requested, but torch finds no CUDA GPU; {instead}")
    return "cpu"


def _check_architecture(instead: str) -> None:
    """Raise CramError if torch has no kernels for the current GPU.

    Binary code for sm_XY runs on later minor versions of the same major one; PTX (compute_XY) on all later ones.
    """
    major, minor = torch.cuda.get_device_capability()
    for architecture in torch.cuda.get_arch_list():
        kind, _, digits = architecture.partition("_")
        number = digits.rstrip("af")
        built = (int(number[:-1]), int(number[-1]))
        if digits != number:  # sm_90a and the like: this version alone, or sm_100f: its family
            fits = built == (major, minor) or (digits.endswith("f") and built[0] == major and built[1] <= minor)
        elif kind == "sm":
            fits = built[0] == major and built[1] <= minor
        else:
            fits = built <= (major, minor)
        if fits:
            return
    raise CramError(
        f"device: torch {torch.__version__} has no kernels for {torch.cuda.get_device_name()} (sm_{major}{minor}), "
        f"only for {', '.join(torch.cuda.get_arch_list())}; install another, or {instead}"
    )


def _nvidia_driver() -> tuple[str, str] | None:
    """Return the versions of the NVIDIA driver and of its CUDA; None if there is no driver or no GPU to be seen."""
    if torch.version.cuda is None:
        return None
    with open_nvml() as nvml:
        if nvml is not None and nvml.nvmlDeviceGetCount():
            cuda = nvml.nvmlSystemGetCudaDriverVersion_v2()
            return str(nvml.nvmlSystemGetDriverVersion()), f"{cuda // 1000}.{cuda % 1000 // 10}"
    return None


def idle_gpu() -> str | None:
    """Return the name of the first GPU, without creating a CUDA context on it; None without a GPU."""
    with open_nvml() as nvml:
        if nvml is not None and nvml.nvmlDeviceGetCount():
            return str(nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(0)))
    return None


def fast_precision(device: str) -> str:
    """Return the fastest of bf16, fp16 and fp32 that `device` ("cuda" or "cpu") supports in hardware."""
    if device == "cpu":
        return "bf16" if _cpu_has_bf16() else "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def _cpu_has_bf16() -> bool:
    """Return True if the CPU multiplies bfloat16 in hardware; otherwise bf16 is slower than fp32."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.is_file() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def out_of_memory(error: BaseException, advice: str | None = None) -> CramError | None:
    """Return a one-line error, which ends in `advice`, if `error` reports that memory could not be allocated."""
    text = " ".join(str(error).split())
    if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not any(one in text for one in _OUT_OF_MEMORY):
        return None
    return CramError(
        f"out of memory ({text[:160] or type(error).__name__}); "
        + (advice or "lower train.device_train_microbatch_size, eval.batch_size, the sizes in model, or train.threads")
    )
