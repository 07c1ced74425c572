"""Position encodings: vectors added to embeddings, rotations of queries and keys, or biases of attention scores.

This file travels with exported models.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from .configuration_crambert import CramBertConfig


def sinusoids(length: int, width: int) -> torch.Tensor:
    """Return sines in even and cosines in odd columns, fp32 [length, width] (Vaswani et al. 2017, section 3.5)."""
    frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)


class SinusoidalPositions(nn.Module):
    """Fixed sinusoids."""

    table: torch.Tensor

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__()
        table = sinusoids(config.max_position_embeddings, config.hidden_size)
        self.register_buffer("table", table, persistent=False)

    def reset_parameters(self) -> None:
        """Fill the table again: checkpoints do not contain it, and transformers may build a model without values."""
        self.table.copy_(sinusoids(*self.table.shape))

    def forward(self, length: int) -> torch.Tensor:
        """Return position vectors [L, H]."""
        return self.table[:length]


class ScaledSinusoidalPositions(SinusoidalPositions):
    """Fixed sinusoids times one learned scalar that starts at 1 / sqrt(H) (Hua et al. 2022, arXiv 2202.10447)."""

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__(config)
        self.scale = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.constant_(self.scale, self.table.shape[1] ** -0.5)

    def forward(self, length: int) -> torch.Tensor:
        return self.scale * super().forward(length)


class LearnedPositions(nn.Module):
    """One trained vector per position (Devlin et al. 2018)."""

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, length: int) -> torch.Tensor:
        return self.embedding.weight[:length]


# Encodings that add a vector to the embedding. "rotary" and "alibi" affect attention only.
ADDED_POSITIONS: dict[str, Callable[[CramBertConfig], nn.Module]] = {
    "learned": LearnedPositions,
    "scaled-sinusoidal": ScaledSinusoidalPositions,
    "sinusoidal": SinusoidalPositions,
}


def rotary_table(length: int, head_size: int, theta: float, device: torch.device) -> torch.Tensor:
    """Return cosines and sines of the angles position * theta^(-2 i / head_size), fp32 [2, L, head_size].

    RoPE (Su et al. 2021, arXiv 2104.09864, eq. 34), with column i paired with column i + head_size / 2.
    """
    frequency = theta ** (-torch.arange(0, head_size, 2, device=device, dtype=torch.float32) / head_size)
    angle = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequency)
    return torch.stack((angle.cos(), angle.sin())).repeat(1, 1, 2)


def rotate(x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """Rotate queries or keys [B, heads, L, head_size] by a table [2, L, head_size] or [2, B, 1, L, head_size]."""
    cosine, sine = rotary.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


def alibi_slopes(heads: int, device: torch.device) -> torch.Tensor:
    """Return the slopes of ALiBi, fp32 [heads] (Press et al. 2021, arXiv 2108.12409, section 3).

    The slopes are 2^(-8 k / heads) for k = 1, 2, ... If `heads` is not a power of two, the slopes of the next lower
    power are extended by every second slope of twice that power, as in the authors' code.
    """

    def slopes(count: int) -> list[float]:
        return [2.0 ** (-8.0 * k / count) for k in range(1, count + 1)]

    lower = 2 ** int(math.log2(heads))
    return torch.tensor(slopes(lower) + slopes(2 * lower)[::2][: heads - lower], device=device)


def alibi_bias(length: int, heads: int, device: torch.device) -> torch.Tensor:
    """Return the bias of attention scores, -slope * |i - j|, symmetric for an encoder, fp32 [1, heads, L, L]."""
    place = torch.arange(length, device=device)
    return -alibi_slopes(heads, device)[:, None, None] * (place[:, None] - place).abs()[None, None]
