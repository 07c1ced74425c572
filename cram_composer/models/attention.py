"""Bidirectional self-attention. This file travels with exported models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_crambert import CramBertConfig


class SelfAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2) with one fused QKV projection, through torch SDPA."""

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """`hidden` [B, L, H]; `mask` bool, broadcastable to [B, heads, L, L], True where a key may be attended to."""
        batch, length, width = hidden.shape
        qkv = self.qkv(hidden).view(batch, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, L, H / heads]
        dropout = self.dropout if self.training else 0.0
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self.out(context.transpose(1, 2).reshape(batch, length, width))
