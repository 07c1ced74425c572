"""Token and position embeddings, positions by config name. This file travels with exported models."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from .configuration_crambert import CramBertConfig
from .norms import NORMS


def sinusoids(length: int, width: int) -> torch.Tensor:
    """Sine in the even columns, cosine in the odd ones: fp32 [length, width] (Vaswani et al. 2017, section 3.5)."""
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
        """Fill the table anew: it is in no checkpoint, and transformers may build a model without values."""
        self.table.copy_(sinusoids(*self.table.shape))

    def forward(self, length: int) -> torch.Tensor:
        """Position vectors [L, H]."""
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


POSITIONS: dict[str, Callable[[CramBertConfig], nn.Module]] = {
    "learned": LearnedPositions,
    "scaled-sinusoidal": ScaledSinusoidalPositions,
    "sinusoidal": SinusoidalPositions,
}


class Embeddings(nn.Module):
    """Token plus position embedding, normalised: [B, L] int64 -> [B, L, H], L <= max_position_embeddings."""

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = POSITIONS[config.positions](config)
        self.norm = NORMS[config.norm](config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        embedded = self.word_embeddings(input_ids) + self.positions(input_ids.shape[1])
        return self.dropout(self.norm(embedded))
