"""Normalisation layers by config name. This file travels with exported models."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .configuration_crambert import CramBertConfig


def layernorm(config: CramBertConfig) -> nn.Module:
    """LayerNorm with weight and bias: the published model drops the biases of linear layers only."""
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)


NORMS: dict[str, Callable[[CramBertConfig], nn.Module]] = {"layernorm": layernorm}
