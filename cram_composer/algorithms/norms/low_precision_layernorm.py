"""LayerNorm and RMSNorm in the dtype of autocast, in place of fp32."""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from composer.core import Algorithm, Event, Precision, State
from composer.loggers import Logger
from torch import nn

from cram_composer.algorithms.norms.replacement import SharedLayerNorm, SharedRMSNorm, replace_norms

log = logging.getLogger(__name__)

_DTYPES = {Precision.AMP_BF16: torch.bfloat16, Precision.AMP_FP16: torch.float16}


class LowPrecisionNorms(Algorithm):
    """Norms with bf16 or fp16 inputs and outputs under autocast (MosaicBERT, arXiv 2312.17482, section 2).

    torch's kernels still keep their statistics in fp32. In fp32 runs nothing changes, which is logged.

    Composer's LowPrecisionLayerNorm copies the parameters, and ignores RMSNorm and the model's own autocast on a CPU.
    This class does not share its name, because Composer would confuse the two when it loads a checkpoint.
    """

    def __init__(self) -> None:
        self.kernel = "torch"

    def match(self, event: Event, state: State) -> bool:
        return event == Event.INIT

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        dtype = _DTYPES.get(state.precision, state.model.autocast_dtype)
        if dtype is None:
            log.info("low-precision-layernorm: no effect with precision fp32")
            return
        replaced = lower_norms(state.model)
        self.kernel = f"torch, in {str(dtype).removeprefix('torch.')}"
        log.info("low-precision-layernorm: %d norms use %s", replaced, self.kernel)


def lower_norms(model: nn.Module) -> int:
    """Replace every LayerNorm and RMSNorm by a low-precision version; return their number."""
    return replace_norms(model, _LayerNorm, _RMSNorm)


class _LayerNorm(SharedLayerNorm):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        lowered, weight, bias = (_lowered(tensor, input) for tensor in (input, self.weight, self.bias))
        with torch.autocast(input.device.type, enabled=False):
            return F.layer_norm(lowered, self.normalized_shape, weight, bias, self.eps)


class _RMSNorm(SharedRMSNorm):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        lowered, weight = (_lowered(tensor, input) for tensor in (input, self.weight))
        with torch.autocast(input.device.type, enabled=False):
            return F.rms_norm(lowered, self.normalized_shape, weight, self.eps)


def _lowered(tensor: Any, input: torch.Tensor) -> Any:
    """Cast a tensor (or None) to the autocast dtype of the device of `input`, if autocast is enabled there."""
    device = input.device.type
    return (
        tensor.to(torch.get_autocast_dtype(device))
        if torch.is_autocast_enabled(device) and tensor is not None
        else tensor
    )
