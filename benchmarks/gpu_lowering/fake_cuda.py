"""A CUDA device that is not there, for code generation: nothing can run on it."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch._inductor.runtime.triton_helpers as triton_helpers
import torch._subclasses.fake_tensor as fake_tensor
import torch.utils._triton as triton_support
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.runtime.hints import DeviceProperties
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

# Compute capability -> multiprocessors and threads of each, of the 2080 Ti, A100, 3090, 4090, H100, B200 and 5090.
CAPABILITIES = {
    75: (68, 1024), 80: (108, 2048), 86: (82, 1536), 89: (128, 1536), 90: (132, 2048), 100: (148, 2048),
    120: (170, 1536),
}  # fmt: skip


class _Driver:
    """Triton's view of the device."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)


@contextmanager
def fake_cuda(capability: int) -> Iterator[None]:
    """Let torch, Inductor and Triton find one GPU of a compute capability (10 x major + minor), in this context."""
    processors, threads = CAPABILITIES[capability]
    major, minor = divmod(capability, 10)
    properties = types.SimpleNamespace(
        name="fake", major=major, minor=minor, multi_processor_count=processors, total_memory=24 << 30, warp_size=32,
        regs_per_multiprocessor=65536, max_threads_per_multi_processor=threads, max_threads_per_block=1024,
        shared_memory_per_block_optin=64 << 10, L2_cache_size=32 << 20, gcnArchName="",
    )  # fmt: skip

    def answer(value: Any) -> Any:
        return lambda *arguments, **named: value

    with ExitStack() as patches:
        for owner, names in (
            (torch.cuda, {
                "is_available": True, "device_count": 1, "current_device": 0, "get_device_properties": properties,
                "get_device_capability": (major, minor), "get_device_name": "fake", "is_bf16_supported": major >= 8,
                "_lazy_init": None, "set_device": None, "synchronize": None, "_exchange_device": 0,
                "_maybe_exchange_device": 0, "get_rng_state": torch.empty(16, dtype=torch.uint8),
                "set_rng_state": None,
            }),
            (fake_tensor, {"init_gpu_context": None}),
            (triton_helpers, {"set_driver_to_gpu": None}),
            (CudaInterface, {
                "get_device_properties": properties, "is_available": True, "current_device": 0,
                "get_compute_capability": capability,
            }),
            (CudaInterface.Worker, {"get_device_properties": properties, "current_device": 0}),
        ):  # fmt: skip
            for name, value in names.items():
                static = isinstance(owner, type)
                patches.enter_context(
                    mock.patch.object(owner, name, staticmethod(answer(value)) if static else answer(value))
                )
        patches.enter_context(mock.patch.object(driver, "_active", _Driver(capability)))
        _forget_device()
        patches.callback(_forget_device)
        yield


def _forget_device() -> None:
    """Clear what torch caches about the device."""
    DeviceProperties.create.cache_clear()
    for function in vars(triton_support).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()
