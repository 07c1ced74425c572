"""Compilation of Inductor's and Liger's Triton kernels to machine code of a GPU that is not there."""

from __future__ import annotations

import importlib.util
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from benchmarks.gpu_lowering.fake_cuda import fake_cuda
from benchmarks.gpu_lowering.step import Step
from cram_composer.algorithms.norms.fused_kernels import layer_norm, rms_norm
from cram_composer.models.crambert.configuration_crambert import CramBertConfig
from cram_composer.models.crambert.heads import MaskedLMHead
from cram_composer.models.losses import liger_cross_entropy

_WARP = 32  # threads
_HIDDEN, _VOCABULARY = 768, 32768  # decide Liger's block sizes


def distinct_kernels(steps: Iterable[Step]) -> dict[str, str]:
    """Return the sources of all kernels by name, one of those that differ in sizes only."""
    sources: dict[str, tuple[str, str]] = {}
    for step in steps:
        for region in (*step.layers, step.head):
            for graph in (region.forward, region.backward):
                for name, source in ({} if graph is None else graph.kernels).items():
                    sources.setdefault(re.sub(r"\d+", "0", source), (name, source))
    return dict(sources.values())


def compile_kernel(name: str, source: str, capabilities: Iterable[int], every: bool = False) -> dict[int, list[int]]:
    """Compile a kernel of Inductor; return the sizes of its binaries in bytes by compute capability.

    Args:
        name: its name.
        source: Python source of its module.
        capabilities: compute capabilities to compile for.
        every: compile all launch configurations among which a GPU would choose; otherwise the first.
    """
    sizes: dict[int, list[int]] = {}
    with fake_cuda(89), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.py"  # Triton reads the source of a function from its file
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        kernel: Any = getattr(module, name)
        for configuration in kernel.configs if every else kernel.configs[:1]:
            meta = kernel._create_compile_meta(configuration)
            code = ASTSource(kernel.fn, meta["signature"], meta["constants"], meta["configs"][0])
            options = kernel._create_compile_options(configuration, meta)
            for capability in capabilities:
                binary = triton.compile(code, target=GPUTarget("cuda", capability, _WARP), options=options)
                sizes.setdefault(capability, []).append(len(binary.asm["cubin"]))
    return sizes


def compile_liger_kernels(capability: int) -> dict[str, int]:
    """Compile Liger's kernels, as this project calls them; return the sizes of their binaries in bytes by name.

    The calls are real, on tensors of a CPU, but their kernels are compiled without being launched.
    """
    half = torch.bfloat16 if capability >= 80 else torch.float16
    sizes: dict[str, int] = {}

    def compile_only(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> Any:
        kernel.device_caches.clear()  # compiled for another capability
        compiled = launch(kernel, *arguments, grid=grid, warmup=True, **named)
        dtype = next(given.dtype for given in (*arguments, *named.values()) if isinstance(given, torch.Tensor))
        sizes[f"{kernel.__name__} {dtype}"] = len(compiled.asm["cubin"])
        return compiled

    launch = JITFunction.run
    with fake_cuda(capability), mock.patch.object(JITFunction, "run", compile_only):
        weight, bias = (torch.ones(_HIDDEN, requires_grad=True) for _ in range(2))
        for dtype in (torch.float32, half):
            hidden = torch.ones(2, _HIDDEN, dtype=dtype, requires_grad=True)
            layer_norm(hidden, weight, bias, 1e-12)[0].sum().backward()
            rms_norm(hidden, weight, 1e-12)[0].sum().backward()
        head = MaskedLMHead(CramBertConfig(hidden_size=_HIDDEN, vocab_size=_VOCABULARY)).to(half)
        hidden = torch.ones(2, _HIDDEN, dtype=half, requires_grad=True)
        liger_cross_entropy(hidden, head, torch.ones(2, dtype=torch.int64))[0].backward()
    return sizes
