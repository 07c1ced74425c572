"""Liger's Triton kernels of LayerNorm and RMSNorm as custom operators of torch.

torch.compile treats custom operators as opaque, whereas tracing into Liger's autograd functions works only with some
versions of torch. Statistics are in fp32, outputs in the input's dtype.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch


def layer_norm_kernels() -> ModuleType:
    """Import Liger's module of LayerNorm kernels. Raises ImportError or RuntimeError if it cannot run."""
    from liger_kernel.ops import layer_norm as kernels

    return kernels


def rms_norm_kernels() -> ModuleType:
    """Import Liger's module of RMSNorm kernels. Raises ImportError or RuntimeError if it cannot run."""
    from liger_kernel.ops import rms_norm as kernels

    return kernels


@torch.library.custom_op("cram_composer::layer_norm", mutates_args=())
def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalize `x` [..., H] by LayerNorm; return the output, and fp32 mean and 1/deviation per row."""
    output, _, mean, rstd, _, _ = layer_norm_kernels().layer_norm_forward(x.contiguous(), weight, bias, eps)
    return output, mean, rstd


@layer_norm.register_fake
def _(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), _row_statistic(x), _row_statistic(x)


@torch.library.custom_op("cram_composer::layer_norm_backward", mutates_args=())
def layer_norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of `x`, `weight` and `bias` from the gradient of the output."""
    rows = x.contiguous().view(-1, x.shape[-1])
    return layer_norm_kernels().layer_norm_backward(grad.contiguous(), rows, weight, bias, mean, rstd)


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


def _save_layer_norm(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, bias, _ = inputs
    ctx.save_for_backward(x, weight, bias, output[1], output[2])


def _differentiate_layer_norm(ctx: Any, grad: torch.Tensor, *of_statistics: Any) -> tuple[torch.Tensor | None, ...]:
    return (*layer_norm_backward(grad, *ctx.saved_tensors), None)


layer_norm.register_autograd(_differentiate_layer_norm, setup_context=_save_layer_norm)


@torch.library.custom_op("cram_composer::rms_norm", mutates_args=())
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalize `x` [..., H] by RMSNorm; return the output, and fp32 1/RMS per row."""
    # The mode "gemma" computes in fp32 throughout, as torch does. The offset of 0 adds nothing to the weights.
    output, _, rstd, _, _, _ = rms_norm_kernels().rms_norm_forward(x.contiguous(), weight, eps, 0.0, "gemma", False)
    return output, rstd


@rms_norm.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), _row_statistic(x)


@torch.library.custom_op("cram_composer::rms_norm_backward", mutates_args=())
def rms_norm_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of `x` and `weight` from the gradient of the output."""
    kernels = rms_norm_kernels()
    rows = x.contiguous().view(-1, x.shape[-1])
    block_size, num_warps = kernels.calculate_settings(x.shape[-1])
    mode = kernels._CASTING_MODE_GEMMA.value
    return kernels.rms_norm_backward(
        grad.contiguous(), rows, weight, rstd, 0.0, mode, block_size, num_warps, in_place=False, row_mode=False
    )


@rms_norm_backward.register_fake
def _(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), torch.empty_like(weight)


def _save_rms_norm(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight, output[1])


def _differentiate_rms_norm(ctx: Any, grad: torch.Tensor, *of_statistics: Any) -> tuple[torch.Tensor | None, ...]:
    return (*rms_norm_backward(grad, *ctx.saved_tensors), None)


rms_norm.register_autograd(_differentiate_rms_norm, setup_context=_save_rms_norm)


def _row_statistic(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)
