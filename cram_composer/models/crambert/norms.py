"""Normalisation layers by config name. This file travels with exported models."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .configuration_crambert import CramBertConfig


def layernorm(config: CramBertConfig) -> nn.Module:
    """Build a LayerNorm. It has a bias by default: crammed BERT drops only the biases of linear layers."""
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)


def rmsnorm(config: CramBertConfig) -> nn.Module:
    """Build an RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467), without mean and bias."""
    return nn.RMSNorm(config.hidden_size, eps=config.norm_eps)


NORMS: dict[str, Callable[[CramBertConfig], nn.Module]] = {"layernorm": layernorm, "rmsnorm": rmsnorm}


def norm_if(wanted: bool, config: CramBertConfig) -> nn.Module:
    """Build the configured norm if `wanted`, else an identity."""
    return NORMS[config.norm](config) if wanted else nn.Identity()
