"""A convolution over a token and its neighbours. This file travels with exported models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_crambert import CramBertConfig


class ShortConvolution(nn.Module):
    """Depthwise convolution over a token and its nearest neighbours, added to the input of a block.

    The residual and the initialization are those of the Canon layers A and C (Allen-Zhu 2025, "Physics of Language
    Models: Part 4.1"). So et al. 2021 (arXiv 2109.08668, section 4) apply such a convolution to queries, keys and
    values. Theirs are causal; this one sees both sides.
    """

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__()
        self.size = config.short_convolution
        # [size, H] stored as a vector, so that optimizers neither decay nor precondition it as a matrix
        self.weight = nn.Parameter(torch.empty(self.size * config.hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize uniformly within 1 / sqrt(size), as torch does for a convolution."""
        nn.init.uniform_(self.weight, -(self.size**-0.5), self.size**-0.5)

    def forward(self, hidden: torch.Tensor, neighbours: torch.Tensor | None) -> torch.Tensor:
        """Convolve: [B, L, H] -> [B, L, H].

        `neighbours`, bool [B, L, size], is True for each neighbour that a token may see; None if it may see all.
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
    """Stand-in for ShortConvolution that leaves the input unchanged."""

    def forward(self, hidden: torch.Tensor, neighbours: torch.Tensor | None) -> torch.Tensor:
        """Return `hidden`."""
        return hidden


def convolution(config: CramBertConfig) -> nn.Module:
    """Build a ShortConvolution of the configured size, or a NoConvolution."""
    return ShortConvolution(config) if config.short_convolution else NoConvolution()


def visible_neighbours(
    size: int,
    attention_mask: torch.Tensor | None,
    document_ids: torch.Tensor | None,
    causal: torch.Tensor | None,
) -> torch.Tensor | None:
    """Return which neighbours each token may see, bool [B, L, size]; None if all. Arguments as in Rows."""
    kinds = document_ids if document_ids is not None else attention_mask
    seen = None
    if kinds is not None:
        length = kinds.shape[1]
        # -2 marks places outside the row; document ids and masks are >= -1.
        padded = F.pad(kinds.long(), (size // 2, size // 2), value=-2)
        seen = torch.stack([padded[:, place : place + length] == kinds for place in range(size)], dim=-1)
    if causal is not None:
        back = torch.arange(size, device=causal.device) <= size // 2
        allowed = (back | ~causal[:, None])[:, None]
        seen = allowed if seen is None else seen & allowed
    return seen
