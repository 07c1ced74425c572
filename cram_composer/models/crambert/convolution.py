"""A convolution over a token and its neighbours. This file travels with exported models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_crambert import CramBertConfig


class ShortConvolution(nn.Module):
    """What a block reads of a token, plus a weighted sum of its nearest neighbours and itself, column by column.

    Allen-Zhu 2025, "Physics of Language Models: Part 4.1" (Canon layers A and C, with their residual and start); So et
    al. 2021, arXiv 2109.08668, section 4, put such a convolution on queries, keys and values. Theirs look back only;
    this one looks to both sides.
    """

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__()
        self.size = config.short_convolution
        # [size, H] as a vector: optimizers are not to take it for a matrix to decay or precondition.
        self.weight = nn.Parameter(torch.empty(self.size * config.hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within 1 / sqrt(size), as torch starts a convolution."""
        nn.init.uniform_(self.weight, -(self.size**-0.5), self.size**-0.5)

    def forward(self, hidden: torch.Tensor, neighbours: torch.Tensor | None) -> torch.Tensor:
        """[B, L, H] -> [B, L, H].

        `neighbours` bool [B, L, size] is true where the token at that place around a token is one that it may see;
        None if all are.
        """
        length = hidden.shape[1]
        weights = self.weight.view(self.size, -1).to(hidden.dtype)
        padded = F.pad(hidden, (0, 0, self.size // 2, self.size // 2))
        result = hidden
        for place, weight in enumerate(weights):
            near = padded[:, place : place + length]
            if neighbours is not None:
                near = near * neighbours[:, :, place, None]
            result = result + weight * near
        return result


class NoConvolution(nn.Module):
    """What a block reads of a token is that token."""

    def forward(self, hidden: torch.Tensor, neighbours: torch.Tensor | None) -> torch.Tensor:
        """Nothing changes."""
        return hidden


def convolution(config: CramBertConfig) -> nn.Module:
    """A ShortConvolution of the configured size, or none."""
    return ShortConvolution(config) if config.short_convolution else NoConvolution()


def visible_neighbours(
    size: int,
    attention_mask: torch.Tensor | None,
    document_ids: torch.Tensor | None,
    causal: torch.Tensor | None,
) -> torch.Tensor | None:
    """What a ShortConvolution of `size` may see, bool [B, L, size], or None for everything; arguments as in Rows."""
    kinds = document_ids if document_ids is not None else attention_mask
    seen = None
    if kinds is not None:
        length = kinds.shape[1]
        # No number of a document, nor a mask, is below -1.
        padded = F.pad(kinds.long(), (size // 2, size // 2), value=-2)
        seen = torch.stack([padded[:, place : place + length] == kinds for place in range(size)], dim=-1)
    if causal is not None:
        back = torch.arange(size, device=causal.device) <= size // 2
        allowed = (back | ~causal[:, None])[:, None]
        seen = allowed if seen is None else seen & allowed
    return seen
