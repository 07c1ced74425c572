"""One transformer layer. This file travels with exported models."""

from __future__ import annotations

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Context, SelfAttention, is_local
from .configuration_crambert import CramBertConfig
from .convolution import convolution
from .feedforward import FEEDFORWARDS
from .norms import norm_if


class CramBertLayer(GradientCheckpointingLayer):
    """Attention and, in every `ffn_every`-th layer, a feed-forward block: [B, L, H] -> [B, L, H].

    `norm_position` selects how a block f is applied:

    - "pre": x + f(norm(x)) (Xiong et al. 2020, arXiv 2002.04745)
    - "post": norm(x + f(x)) (Vaswani et al. 2017)
    - "sandwich": x + norm(f(norm(x))) (Ding et al. 2021, arXiv 2105.13290, section 2.3)

    With `short_convolution`, the input of f includes neighbouring tokens.
    """

    def __init__(self, config: CramBertConfig, index: int) -> None:
        super().__init__()
        before, after = config.norm_position in ("pre", "sandwich"), config.norm_position == "sandwich"
        self.is_local = is_local(config, index)
        # Each of the first k layers has a value embedding; the last k use the same ones in reverse order.
        nearest = min(index, config.num_hidden_layers - 1 - index)
        self.value_embedding = nearest if nearest < config.value_embeddings else None
        self.is_post = config.norm_position == "post"

        self.attention_norm = norm_if(self.is_post or (before and (index > 0 or config.first_norm)), config)
        self.attention_convolution = convolution(config)
        self.attention = SelfAttention(config, self.value_embedding is not None)
        self.attention_out_norm = norm_if(after, config)
        self.has_feedforward = (index + 1) % config.ffn_every == 0
        if self.has_feedforward:
            self.feedforward_norm = norm_if(self.is_post or before, config)
            self.feedforward_convolution = convolution(config)
            self.feedforward = FEEDFORWARDS[config.ffn](config)
            self.feedforward_out_norm = norm_if(after, config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden: torch.Tensor, context: Context, value_embedding: torch.Tensor | None = None
    ) -> torch.Tensor:
        near = context.neighbours
        if self.is_post:
            attended = self.attention(self.attention_convolution(hidden, near), context, value_embedding)
            hidden = self.attention_norm(hidden + self.dropout(attended))
            if self.has_feedforward:
                changed = self.feedforward(self.feedforward_convolution(hidden, near))
                hidden = self.feedforward_norm(hidden + self.dropout(changed))
            return hidden
        read = self.attention_convolution(self.attention_norm(hidden), near)
        attended = self.attention(read, context, value_embedding)
        hidden = hidden + self.dropout(self.attention_out_norm(attended))
        if self.has_feedforward:
            read = self.feedforward_convolution(self.feedforward_norm(hidden), near)
            hidden = hidden + self.dropout(self.feedforward_out_norm(self.feedforward(read)))
        return hidden
