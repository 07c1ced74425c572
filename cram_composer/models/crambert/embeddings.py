"""Token and position embeddings. This file travels with exported models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_crambert import CramBertConfig
from .norms import norm_if
from .positions import ADDED_POSITIONS

# Odd multipliers (of xxHash) that mix the ids of two tokens; a shift carries their high bits to the low ones.
_LEFT, _RIGHT, _SHIFT = 2654435761, 2246822519, 17


def projection(width: int, target: int) -> nn.Module:
    """Return a matrix that changes the width of a token embedding, or nothing for equal widths."""
    return nn.Identity() if width == target else nn.Linear(width, target, bias=False)


class NeighborEmbeddings(nn.Module):
    """Embedding of the pair of tokens on both sides of a token, in a table that different pairs share by a hash.

    It tells a masked position what tends to stand between its neighbours. Hash embeddings are from Svenstrup et al.
    2017 (arXiv 1709.03933), and of bigrams in modded-nanogpt; a pair on both sides suits masked tokens. The table
    starts at zero.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width)
        self.table.init_scale = 0.0  # type: ignore[assignment]

    def forward(self, input_ids: torch.Tensor, neighbours: torch.Tensor | None) -> torch.Tensor:
        """Embed the neighbours of `input_ids`: [B, L] -> [B, L, E].

        `neighbours`, bool [B, L, 3], is True where a token may see the one before, itself and the one after; None if it
        may see all. A neighbour that it may not see counts as none.
        """
        length = input_ids.shape[1]
        padded = F.pad(input_ids, (1, 1), value=-1)
        before, after = padded[:, :length], padded[:, 2 : length + 2]
        if neighbours is not None:
            before = before.where(neighbours[..., 0], -1)
            after = after.where(neighbours[..., 2], -1)
        mixed = (before + 2) * _LEFT ^ (after + 2) * _RIGHT
        return self.table((mixed ^ mixed >> _SHIFT) % self.table.num_embeddings)


class Embeddings(nn.Module):
    """Token and neighbour embeddings [.., E], projected to the hidden size, plus position embedding, normalised.

    [B, L] int64 -> [B, L, H], L <= max_position_embeddings.
    """

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__()
        width = config.embedding_size or config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        self.neighbors = NeighborEmbeddings(config.neighbor_embeddings, width) if config.neighbor_embeddings else None
        self.projection = projection(width, config.hidden_size)
        self.positions = ADDED_POSITIONS[config.positions](config) if config.positions in ADDED_POSITIONS else None
        self.norm = norm_if(config.embedding_norm, config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None = None,
        neighbours: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embed `input_ids`, or complete token embeddings `inputs_embeds` [B, L, E]; see NeighborEmbeddings."""
        embedded = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if self.neighbors is not None:
            embedded = embedded + self.neighbors(input_ids, neighbours)
        embedded = self.projection(embedded)
        if self.positions is not None:
            # transformers keeps fixed positions in fp32 when it loads the weights in another dtype
            embedded = embedded + self.positions(embedded.shape[1]).to(embedded.dtype)
        return self.dropout(self.norm(embedded))
