"""The set-up of a CPU, and GPUs that this torch cannot use."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cram_composer import device
from cram_composer.config.schema.run import RunConfig
from cram_composer.device import choose_device, device_kind, idle_gpu
from cram_composer.errors import CramError

BUILT = ["sm_75", "sm_80", "sm_86", "sm_90a", "sm_100f", "compute_120"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: BUILT)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Test")
    return monkeypatch


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1), (13, 0)])
def test_supported_architectures(capability: tuple[int, int], gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert device_kind("cuda", "") == device_kind("auto", "") == "cuda"


@pytest.mark.parametrize("capability", [(7, 0), (9, 1), (11, 0)])
def test_architecture_without_kernels_is_refused(capability: tuple[int, int], gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.cuda, "get_device_capability", lambda: capability)
    number = f"{capability[0]}{capability[1]}"
    with pytest.raises(CramError, match=rf"no kernels for NVIDIA Test \(sm_{number}\).*sm_75.*, or advice$"):
        device_kind("auto", "advice")
    assert device_kind("cpu", "") == "cpu"


def configuration(**train: str) -> RunConfig:
    return RunConfig.model_validate({"device": "cuda", "train": train})


def test_bf16_is_refused_where_the_gpu_has_none(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    gpu.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert choose_device(configuration(), 1).precision == "fp16"
    with pytest.raises(
        CramError, match=r"train\.precision: NVIDIA Test has no bf16; set train\.precision=fp16 or auto"
    ):
        choose_device(configuration(precision="bf16"), 1)


def test_fp32_is_not_rounded_to_tf32(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    gpu.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    gpu.setattr("composer.devices.DeviceGPU", lambda allow_tf32: allow_tf32)
    for precision, allowed in (("fp32", False), ("bf16", True), ("auto", True)):
        assert choose_device(configuration(precision=precision), 1).composer_device is allowed


def test_a_cpu_without_bf16_keeps_no_residual_stream_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig.model_validate({"device": "cpu", "model": {"residual_in_fp32": False}})
    monkeypatch.setattr(device, "_cpu_has_bf16", lambda: True)
    assert choose_device(config, 1).precision == "bf16"
    monkeypatch.setattr(device, "_cpu_has_bf16", lambda: False)
    with pytest.raises(CramError, match=r"model\.residual_in_fp32: false needs bf16, which this CPU lacks"):
        choose_device(config, 1)


@pytest.mark.parametrize("there", ["nothing", "compiler", "both"])
def test_a_gpu_without_the_tools_of_triton_is_not_compiled(
    there: str, gpu: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    gpu.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    gpu.setattr(device.shutil, "which", lambda name: None if there == "nothing" else f"/usr/bin/{name}")
    gpu.setattr(device.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    if there == "both":
        (tmp_path / "Python.h").touch()
        for mode, chosen in (("auto", "regional"), ("full", "full")):
            assert choose_device(configuration(compile=mode), 1).compile == chosen
        return
    missing = {"nothing": "needs a C compiler; install gcc", "compiler": f"needs {tmp_path}/Python.h, which is missing"}
    with caplog.at_level("WARNING"):
        assert choose_device(configuration(), 1).compile == "off"
    assert "train.compile: off, because Triton" in caplog.text and missing[there] in caplog.text
    with pytest.raises(CramError, match=r"train\.compile: Triton needs .* set train\.compile=off"):
        choose_device(configuration(compile="regional"), 1)
    assert choose_device(configuration(compile="off"), 1).compile == "off"


class _NvmlError(Exception):
    """Stands in for pynvml's."""


def _nvml(count: int) -> SimpleNamespace:
    def no_driver() -> None:
        raise _NvmlError

    return SimpleNamespace(
        NVMLError=_NvmlError,
        nvmlInit=(lambda: None) if count >= 0 else no_driver,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: count,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: "NVIDIA Test",
        nvmlSystemGetDriverVersion=lambda: "470.57",
        nvmlSystemGetCudaDriverVersion_v2=lambda: 11040,
    )


@pytest.mark.parametrize("requested", ["auto", "cuda"])
def test_old_driver_is_named(requested: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", _nvml(1))
    said = r"driver 470\.57 \(CUDA 11\.4\) is too old for torch .* CUDA 13\.0; update the driver, or advice$"
    with pytest.raises(CramError, match=said):
        device_kind(requested, "advice")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_kind("auto", "advice") == "cpu"


def test_a_gpu_that_is_left_idle_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for count, name in ((-1, None), (0, None), (1, "NVIDIA Test")):
        monkeypatch.setitem(sys.modules, "pynvml", _nvml(count))
        assert idle_gpu() == name
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert idle_gpu() is None


@pytest.mark.parametrize("count", [-1, 0])
def test_no_gpu_is_not_an_old_driver(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", _nvml(count))
    assert device_kind("auto", "advice") == "cpu"
    with pytest.raises(CramError, match="torch finds no CUDA GPU; advice"):
        device_kind("cuda", "advice")


PAGE_FAULTS = """
import resource, torch
from cram_composer.device import set_up_cpu

def faults():
    counts = []
    for _ in range(8):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(size) for size in (2**20, 2**24, 2**25)]  # 4, 64 and 128 MiB
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        del tensors
    return sum(counts[3:])

set_up_cpu(1, trains_here=False)
before = faults()
set_up_cpu(1)
print(torch.get_num_threads(), before, faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
def test_a_cpu_that_trains_keeps_the_memory_of_one_step_for_the_next():
    command = [sys.executable, "-c", PAGE_FAULTS]
    threads, without, kept = map(int, subprocess.run(command, capture_output=True, check=True).stdout.split())
    assert threads == 1
    # Allocating 196 MiB again in each of five steps takes 250,000 page faults, or 500 with huge pages.
    assert without > 400
    assert kept < without / 4


COMPILER_PROCESSES = """
import os, sys
from pathlib import Path
from cram_composer.device import set_up_cpu
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "2"
set_up_cpu(1, trains_here=sys.argv[1] == "cpu")
import torch._inductor.async_compile
children = sum(len(children.read_text().split()) for children in Path("/proc/self/task").glob("*/children"))
print(children, os.environ.get("TORCH_WARM_POOL"))
"""


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_processes_that_compile_for_gpus_are_started_for_gpus_only(device: str):
    environment = {name: value for name, value in os.environ.items() if name != "TORCH_WARM_POOL"}
    command = [sys.executable, "-c", COMPILER_PROCESSES, device]
    result = subprocess.run(command, capture_output=True, check=True, env=environment)
    children, warm_pool = result.stdout.decode().split()
    # For a GPU torch 2.7 starts them at the import, later versions at the first compilation.
    assert (int(children), warm_pool) == (0, "0") if device == "cpu" else warm_pool == "None"
