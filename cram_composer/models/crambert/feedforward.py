"""Feed-forward blocks by config name, [B, L, H] -> [B, L, H]. This file travels with exported models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_crambert import CramBertConfig

Activation = Callable[[torch.Tensor], torch.Tensor]


def relu_squared(x: torch.Tensor) -> torch.Tensor:
    """Return relu(x)^2 (So et al. 2021, arXiv 2109.08668)."""
    return F.relu(x).square()


class MLP(nn.Module):
    """W_out f(W_in x) (Vaswani et al. 2017, section 3.3)."""

    def __init__(self, activation: Activation, config: CramBertConfig) -> None:
        super().__init__()
        self.activation = activation
        self.w_in = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.w_out = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.w_out(self.activation(self.w_in(hidden)))


class GLU(nn.Module):
    """W_out (f(gate) * value), where W_in x = [value; gate] (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, activation: Activation, config: CramBertConfig) -> None:
        super().__init__()
        self.activation = activation
        self.w_in = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.w_out = nn.Linear(config.intermediate_size // 2, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        value, gate = self.w_in(hidden).chunk(2, dim=-1)
        return self.w_out(self.activation(gate) * value)


FEEDFORWARDS: dict[str, Callable[[CramBertConfig], nn.Module]] = {
    "gelu": partial(MLP, F.gelu),
    "geglu": partial(GLU, F.gelu),
    "relu2": partial(MLP, relu_squared),
    "swiglu": partial(GLU, F.silu),
}
