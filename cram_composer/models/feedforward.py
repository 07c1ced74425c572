"""Feed-forward blocks by config name, [B, L, H] -> [B, L, H]. This file travels with exported models."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_crambert import CramBertConfig


class GeluMLP(nn.Module):
    """W_out gelu(W_in x) (Devlin et al. 2018)."""

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__()
        self.w_in = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.w_out = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.w_out(F.gelu(self.w_in(hidden)))


class GeluGLU(nn.Module):
    """W_out (gelu(gate) * value), where W_in x = [value; gate] (Shazeer 2020, arXiv 2002.05202, GEGLU)."""

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__()
        self.w_in = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.w_out = nn.Linear(config.intermediate_size // 2, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        value, gate = self.w_in(hidden).chunk(2, dim=-1)
        return self.w_out(F.gelu(gate) * value)


FEEDFORWARDS: dict[str, Callable[[CramBertConfig], nn.Module]] = {"gelu": GeluMLP, "gelu_glu": GeluGLU}
