"""LayerNorm and RMSNorm with Liger's fused Triton kernels on CUDA."""

from __future__ import annotations

import importlib.metadata
import logging

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch import nn

from cram_composer.algorithms.norms.fused_kernels import layer_norm, layer_norm_kernels, rms_norm, rms_norm_kernels
from cram_composer.algorithms.norms.replacement import SharedLayerNorm, SharedRMSNorm, replace_norms

log = logging.getLogger(__name__)


class FusedLayerNorm(Algorithm):
    """Replace every `torch.nn.LayerNorm` and `torch.nn.RMSNorm` by Liger's at the start of a run on a GPU.

    Parameters are shared, not copied, so optimizers, state-dict keys and exports are unaffected. On other devices and
    in compiled layers torch's norms stay: torch.compile fuses them with the residual sum and the cast beside them,
    which an opaque kernel prevents.

    Attributes:
        kernel: "liger VERSION (triton)" or "torch".
    """

    def __init__(self) -> None:
        self.kernel = "torch"

    def match(self, event: Event, state: State) -> bool:
        return event == Event.INIT

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if state.device.name != "gpu":
            log.info("fused-layernorm: no GPU; using torch's norms, which torch.compile fuses")
            return
        if getattr(state.model, "compiled_regions", None):
            log.info("fused-layernorm: the layers are compiled; using torch's norms, which torch.compile fuses")
            return
        try:
            layer_norm_kernels()
            rms_norm_kernels()
        except (ImportError, RuntimeError) as error:  # Triton raises RuntimeError without a GPU driver
            log.warning("fused-layernorm: liger-kernel is unavailable (%s); using torch's norms", error)
            return
        replaced = fuse_norms(state.model)
        self.kernel = f"liger {importlib.metadata.version('liger-kernel')} (triton)"
        log.info("fused-layernorm: %d norms use %s", replaced, self.kernel)


def fuse_norms(model: nn.Module) -> int:
    """Replace every LayerNorm and RMSNorm that has weights [H] by Liger's; return their number."""
    return replace_norms(model, LigerLayerNorm, LigerRMSNorm, only_vectors=True)


class LigerLayerNorm(SharedLayerNorm):
    """Liger's LayerNorm over the last dimension, sharing the parameters of another; falls back to torch's off CUDA.

    The output has the input's dtype; statistics are in fp32.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not input.is_cuda:  # a model moved to the CPU for its export
            return super().forward(input)
        bias = torch.zeros_like(self.weight) if self.bias is None else self.bias
        return layer_norm(input, self.weight, bias, self.eps)[0]


class LigerRMSNorm(SharedRMSNorm):
    """Liger's RMSNorm over the last dimension, sharing the weights of another; falls back to torch's off CUDA.

    The output has the input's dtype; the computation is in fp32.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not input.is_cuda:  # a model moved to the CPU for its export
            return super().forward(input)
        eps = torch.finfo(input.dtype).eps if self.eps is None else self.eps
        return rms_norm(input, self.weight, eps)[0]
