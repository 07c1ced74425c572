"""Replacement of torch's norms in a model by others that share their parameters."""

from __future__ import annotations

from composer.utils.module_surgery import replace_module_classes
from torch import nn


class SharedLayerNorm(nn.LayerNorm):
    """Base of a LayerNorm over the last dimension that shares the parameters of another."""

    def __init__(self, layer: nn.LayerNorm) -> None:
        super().__init__(list(layer.normalized_shape), layer.eps, elementwise_affine=False)
        self.weight, self.bias = layer.weight, layer.bias


class SharedRMSNorm(nn.RMSNorm):
    """Base of an RMSNorm over the last dimension that shares the weights of another."""

    def __init__(self, layer: nn.RMSNorm) -> None:
        super().__init__(list(layer.normalized_shape), layer.eps, elementwise_affine=False)
        self.weight = layer.weight


def replace_norms(
    model: nn.Module, layer_norm: type[SharedLayerNorm], rms_norm: type[SharedRMSNorm], *, only_vectors: bool = False
) -> int:
    """Replace every LayerNorm and RMSNorm, or `only_vectors`: those that have weights [H]; return their number."""

    def replacement(layer: nn.Module, index: int) -> nn.Module | None:
        if not isinstance(layer, nn.LayerNorm | nn.RMSNorm):
            return None
        if only_vectors and (layer.weight is None or layer.weight.ndim > 1):
            return None
        return layer_norm(layer) if isinstance(layer, nn.LayerNorm) else rms_norm(layer)

    return len(replace_module_classes(model, {nn.LayerNorm: replacement, nn.RMSNorm: replacement}))
