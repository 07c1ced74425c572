"""Normalisation layers by config name. This file travels with exported models."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .configuration_crambert import CramBertConfig


def layernorm(config: CramBertConfig) -> nn.Module:
    """LayerNorm; with a bias by default, as the published crammed BERT drops the biases of linear layers only."""
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)


def rmsnorm(config: CramBertConfig) -> nn.Module:
    """RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467): no mean, no bias."""
    return nn.RMSNorm(config.hidden_size, eps=config.norm_eps)


NORMS: dict[str, Callable[[CramBertConfig], nn.Module]] = {"layernorm": layernorm, "rmsnorm": rmsnorm}


def norm_if(wanted: bool, config: CramBertConfig) -> nn.Module:
    """The configured norm, or nothing in its place."""
    return NORMS[config.norm](config) if wanted else nn.Identity()
