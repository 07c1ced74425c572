"""LayerNorm by Liger's fused Triton kernel on CUDA; elsewhere torch's own, which torch.compile fuses."""

from __future__ import annotations

import importlib.metadata
import logging
from types import ModuleType
from typing import Any

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils.module_surgery import replace_module_classes
from torch import nn

log = logging.getLogger(__name__)


class FusedLayerNorm(Algorithm):
    """Replace every `torch.nn.LayerNorm` by `LigerLayerNorm` at the start of a run on a GPU.

    Parameters are shared, not copied: optimizers, state dict keys and exports do not notice. `kernel` names what runs:
    "liger VERSION (triton)", or "torch" on other devices and where Liger cannot be imported (with a warning).
    """

    def __init__(self) -> None:
        self.kernel = "torch"

    def match(self, event: Event, state: State) -> bool:
        return event == Event.INIT

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if state.device.name != "gpu":
            log.info("fused-layernorm: no GPU, torch's own LayerNorm runs (torch.compile fuses it)")
            return
        try:
            liger_kernels()
        except (ImportError, RuntimeError) as error:  # Triton raises RuntimeError where it finds no driver
            log.warning("fused-layernorm: liger-kernel cannot be used, torch's own LayerNorm runs: %s", error)
            return
        replaced = replace_layernorms(state.model)
        self.kernel = f"liger {importlib.metadata.version('liger-kernel')} (triton)"
        log.info("fused-layernorm: %d LayerNorms run on %s", replaced, self.kernel)


def replace_layernorms(model: nn.Module) -> int:
    """Put a `LigerLayerNorm` in the place of every LayerNorm that has weights; returns how many."""

    def replacement(layer: nn.Module, index: int) -> nn.Module | None:
        return LigerLayerNorm(layer) if isinstance(layer, nn.LayerNorm) and layer.elementwise_affine else None

    return len(replace_module_classes(model, {nn.LayerNorm: replacement}))


class LigerLayerNorm(nn.LayerNorm):
    """A LayerNorm over the last dimension with the parameters of another; the kernel runs on CUDA tensors.

    Output has the input's dtype; statistics are in fp32.
    """

    def __init__(self, layer: nn.LayerNorm) -> None:
        super().__init__(list(layer.normalized_shape), layer.eps, elementwise_affine=False)
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not input.is_cuda:  # a model brought back to the CPU for its export
            return super().forward(input)
        bias = torch.zeros_like(self.weight) if self.bias is None else self.bias
        return layer_norm(input, self.weight, bias, self.eps)[0]


def liger_kernels() -> ModuleType:
    """Liger's module of LayerNorm kernels. Raises ImportError or RuntimeError where it cannot run."""
    from liger_kernel.ops import layer_norm as kernels

    return kernels


# Custom operators, because torch.compile takes them as they are: tracing into Liger's autograd function would depend
# on what of it each torch version can follow.


@torch.library.custom_op("cram_composer::layer_norm", mutates_args=())
def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """LayerNorm of `x` [..., H] with `weight` and `bias` [H]: the output, and fp32 mean and 1/deviation per row."""
    output, _, mean, rstd, _, _ = liger_kernels().layer_norm_forward(x.contiguous(), weight, bias, eps)
    return output, mean, rstd


@layer_norm.register_fake
def _(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    statistics = x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)
    return x.new_empty(x.shape), statistics, torch.empty_like(statistics)


@torch.library.custom_op("cram_composer::layer_norm_backward", mutates_args=())
def layer_norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of `x`, `weight` and `bias` from the output's."""
    rows = x.contiguous().view(-1, x.shape[-1])
    return liger_kernels().layer_norm_backward(grad.contiguous(), rows, weight, bias, mean, rstd)


@layer_norm_backward.register_fake
def _(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), torch.empty_like(weight), torch.empty_like(bias)


def _save_for_backward(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, bias, _ = inputs
    ctx.save_for_backward(x, weight, bias, output[1], output[2])


def _backward(ctx: Any, grad: torch.Tensor, *of_statistics: Any) -> tuple[torch.Tensor | None, ...]:
    return (*layer_norm_backward(grad, *ctx.saved_tensors), None)


layer_norm.register_autograd(_backward, setup_context=_save_for_backward)
