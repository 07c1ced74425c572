"""Token and position embeddings. This file travels with exported models."""

from __future__ import annotations

import torch
from torch import nn

from .configuration_crambert import CramBertConfig
from .norms import norm_if
from .positions import ADDED_POSITIONS


def projection(width: int, target: int) -> nn.Module:
    """Return a matrix that changes the width of a token embedding, or nothing for equal widths."""
    return nn.Identity() if width == target else nn.Linear(width, target, bias=False)


class Embeddings(nn.Module):
    """Token embedding [.., E], projected to the hidden size, plus position embedding, normalised.

    [B, L] int64 -> [B, L, H], L <= max_position_embeddings.
    """

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__()
        width = config.embedding_size or config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        self.projection = projection(width, config.hidden_size)
        self.positions = ADDED_POSITIONS[config.positions](config) if config.positions in ADDED_POSITIONS else None
        self.norm = norm_if(config.embedding_norm, config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None = None) -> torch.Tensor:
        """Embed `input_ids`, or complete token embeddings `inputs_embeds` [B, L, E]."""
        embedded = self.projection(self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds)
        if self.positions is not None:
            # transformers keeps fixed positions in fp32 when it loads the weights in another dtype
            embedded = embedded + self.positions(embedded.shape[1]).to(embedded.dtype)
        return self.dropout(self.norm(embedded))
