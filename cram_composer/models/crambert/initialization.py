"""Initial weights. This file travels with exported models."""

from __future__ import annotations

import torch
from torch import nn

from .attention import SelfAttention
from .configuration_crambert import CramBertConfig
from .feedforward import GLU, MLP


def init_weights(module: nn.Module, std: float) -> None:
    """Initialize matrices from a normal distribution (`initializer_range`) and biases to zero, as BERT does.

    The matrices of blocks are then multiplied by their `init_scale`.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
        scale = getattr(module, "init_scale", 1.0)
        # transformers guards the functions of nn.init, but not this product, against weights that were loaded.
        if scale != 1.0 and not getattr(module.weight, "_is_hf_initialized", False):
            with torch.no_grad():
                module.weight.mul_(scale)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    elif callable(reset := getattr(module, "reset_parameters", None)):
        reset()  # norms and positions initialize themselves


def set_init_scales(model: nn.Module, config: CramBertConfig) -> None:
    """Set `init_scale` of the matrices in blocks, from `output_init` and `matrix_init_scale`.

    On the matrices, because transformers 5 does not call `_init_weights` for modules without parameters of their own.
    """
    depth = (2 * config.num_hidden_layers) ** -0.5
    output_scale = {"normal": 1.0, "scaled": depth, "zero": 0.0}[config.output_init]
    for block in model.modules():
        if isinstance(block, SelfAttention | MLP | GLU):
            output = block.out if isinstance(block, SelfAttention) else block.w_out
            for matrix in block.children():
                if isinstance(matrix, nn.Linear):
                    scale = config.matrix_init_scale * (output_scale if matrix is output else 1.0)
                    matrix.init_scale = scale  # type: ignore[assignment]
