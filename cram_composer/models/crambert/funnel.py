"""A stack whose middle layers run on shorter rows. This file travels with exported models."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from .configuration_crambert import CramBertConfig
from .layer_calls import LayerCalls, Passes

_STAGES = 3
_LAST = 2  # final layers on full rows


class Funnel(nn.Module):
    """Funnel transformer (Dai et al. 2020, arXiv 2006.03236).

    Three stages each run on half as many tokens as the one before. Two more layers run on full rows; their input is the
    first stage's output plus the last stage's, repeated to full length.

    Between stages, hidden states are averaged in pairs; the paper averages only the queries of the next layer. After
    the first stage, rows are truncated to a multiple of four tokens and padded back at the end, so the last tokens of a
    row may pass through the first stage only.
    """

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__()
        layers = list(range(config.num_hidden_layers - _LAST))
        ends = [len(layers) * stage // _STAGES for stage in range(_STAGES + 1)]
        self.stages = [layers[start:end] for start, end in itertools.pairwise(ends)]
        self.last = range(config.num_hidden_layers - _LAST, config.num_hidden_layers)

    def forward(self, layers: LayerCalls, hidden: torch.Tensor) -> torch.Tensor:
        """Run the layers: [B, L, H] -> [B, L, H]."""
        length = hidden.shape[1]
        first = hidden
        for stage, members in enumerate(self.stages):
            if stage:
                pairs = hidden[:, : hidden.shape[1] // 2 * 2].unflatten(1, (-1, 2))
                hidden = pairs.mean(2)
            shorter = layers.strided(2**stage, hidden.shape[1])
            for index in members:
                hidden = shorter(index, hidden)
            if not stage:
                first = hidden
        repeated = hidden.repeat_interleave(2 ** (_STAGES - 1), dim=1)
        hidden = first + nn.functional.pad(repeated, (0, 0, 0, length - repeated.shape[1]))
        for index in self.last:
            hidden = layers(index, hidden)
        return hidden

    def passes(self, length: int) -> Passes:
        """List the layer calls of a row of `length` tokens in training."""
        through = [(index, length >> stage) for stage, members in enumerate(self.stages) for index in members]
        return [*through, *((index, length) for index in self.last)]
