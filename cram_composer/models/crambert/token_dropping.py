"""A stack whose middle layers process some of the tokens in training. This file travels with exported models."""

from __future__ import annotations

import torch
from torch import nn

from .configuration_crambert import CramBertConfig
from .layer_calls import LayerCalls, Passes, pick


class TokenDropping(nn.Module):
    """Drop a share of the tokens in the middle of the stack during training (Hou et al. 2022, arXiv 2203.13240).

    Dropped tokens skip the layers from the middle up to the one before the last, then rejoin unchanged. They are drawn
    at random for each row, as in random-LTD (Yao et al. 2022, arXiv 2211.11586); Hou et al. keep the tokens with the
    highest loss so far. Evaluation drops nothing.
    """

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__()
        self.num_layers = config.num_hidden_layers
        self.dropped_tokens = config.dropped_tokens
        self.middle = range(self.num_layers // 2, self.num_layers - 1)

    def forward(self, layers: LayerCalls, hidden: torch.Tensor) -> torch.Tensor:
        """Run the layers: [B, L, H] -> [B, L, H]."""
        batch, length, _ = hidden.shape
        some, positions, everything = layers, None, hidden
        for index in range(self.num_layers):
            if self.training and index == self.middle.start and len(self.middle):
                chance = torch.rand(batch, length, device=hidden.device)
                positions = chance.topk(self._kept(length), dim=1).indices.sort(dim=1).values
                some, everything, hidden = layers.at(positions), hidden, pick(hidden, positions)
            if positions is not None and index == self.middle.stop:
                place = positions.unsqueeze(-1).expand_as(hidden)
                some, hidden, positions = layers, everything.scatter(1, place, hidden), None
            hidden = some(index, hidden)
        return hidden

    def passes(self, length: int) -> Passes:
        """List the layer calls of a row of `length` tokens in training."""
        return [(i, self._kept(length) if i in self.middle else length) for i in range(self.num_layers)]

    def _kept(self, length: int) -> int:
        return max(round(length * (1.0 - self.dropped_tokens)), 1)
