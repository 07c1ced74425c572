"""Bidirectional self-attention and the context of a batch it needs. This file travels with exported models."""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_crambert import CramBertConfig
from .convolution import visible_neighbours
from .positions import alibi_bias, rotary_table, rotate

_QK_EPS = 1e-6


class Rows(NamedTuple):
    """Facts about a batch that decide which keys a query may attend to.

    Attributes:
        local: for the layers with a local window; False for those with global attention.
        length: tokens per row, L.
        dtype: of the queries.
        attention_mask: [B, L], 0 at padding; ignored if there are `document_ids`.
        document_ids: int64 [B, L], see CramBertModel.
        causal: bool [B], True for rows in which tokens attend only to themselves and earlier tokens.
    """

    config: CramBertConfig
    local: bool
    batch: int
    length: int
    device: torch.device
    dtype: torch.dtype
    attention_mask: torch.Tensor | None
    document_ids: torch.Tensor | None
    causal: torch.Tensor | None


class AttentionKernel(Protocol):
    """An implementation of attention, with its representation of the mask."""

    def mask(self, rows: Rows) -> Any:
        """Build the `mask` argument of `attend`, once for all global or all local layers."""

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, dropout: float
    ) -> torch.Tensor:
        """Compute softmax(Q K^T / sqrt(D)) V; all tensors are [B, heads, L, D]."""


class DenseAttention:
    """torch's scaled_dot_product_attention, with a dense mask if one is needed.

    The mask broadcasts to [B, heads, L, L]. It is bool, True where a query may attend to a key, or float and added to
    the scores.
    """

    def mask(self, rows: Rows) -> torch.Tensor | None:
        """Combine everything that limits attention into one tensor; return None if nothing does."""
        config = rows.config
        place = torch.arange(rows.length, device=rows.device)
        masks = []
        if rows.document_ids is not None:
            masks.append(rows.document_ids[:, None, :, None] == rows.document_ids[:, None, None, :])
        elif rows.attention_mask is not None:
            masks.append(rows.attention_mask[:, None, None, :].bool())
        if rows.local:
            assert config.local_window is not None
            masks.append((place[:, None] - place).abs()[None, None] <= config.local_window // 2)
        if rows.causal is not None:
            masks.append((place[:, None] >= place)[None, None] | ~rows.causal[:, None, None, None])
        mask = reduce(torch.logical_and, masks) if masks else None
        if mask is not None and rows.local:
            # Kernels return NaN for a query without keys, such as padding far from any token.
            mask = mask | (place[:, None] == place)
        if config.positions == "alibi":
            bias = alibi_bias(rows.length, config.num_attention_heads, rows.device).to(rows.dtype)
            mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
        return mask

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        dropout: float,
    ) -> torch.Tensor:
        """Attend: [B, heads, L, D] -> [B, heads, L, D]."""
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


DENSE = DenseAttention()


def attention_weights(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return softmax(Q K^T / sqrt(D)) in fp32: [B, heads, L, D] -> [B, heads, L, L]; `mask` as in DenseAttention."""
    scores = torch.matmul(query, key.transpose(-2, -1)).float() * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(dim=-1)


class ExplicitAttention(DenseAttention):
    """Attention by two matrix products, for transformers' `output_attentions` and its implementation "eager".

    Args:
        kept: a list to append the weights [B, heads, L, L] of each call to; None discards them.
    """

    def __init__(self, kept: list[torch.Tensor] | None = None) -> None:
        self.kept = kept

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        dropout: float,
    ) -> torch.Tensor:
        """Attend: [B, heads, L, D] -> [B, heads, L, D]."""
        weights = attention_weights(query, key, mask).to(value.dtype)
        if self.kept is not None:
            self.kept.append(weights)
        return torch.matmul(F.dropout(weights, dropout), value)


class Context(NamedTuple):
    """Inputs of attention besides the hidden states; shared by all global or all local layers.

    Attributes:
        kernel: computes attention.
        mask: argument of `kernel`; None without a mask.
        rotary: table for `rotate`; None without rotary positions.
        neighbours: argument of ShortConvolution; None if every neighbour is visible.

    `strided` and `at` need a DenseAttention or a subclass, and no convolutions.
    """

    mask: Any
    rotary: torch.Tensor | None
    kernel: AttentionKernel = DENSE
    neighbours: torch.Tensor | None = None

    def strided(self, stride: int, count: int) -> Context:
        """Return the context of every `stride`-th position, the first `count` of them."""
        mask = None if self.mask is None else self.mask[..., ::stride, ::stride][..., :count, :count]
        rotary = None if self.rotary is None else self.rotary[..., ::stride, :][..., :count, :]
        return Context(mask, rotary, self.kernel)

    def at(self, positions: torch.Tensor) -> Context:
        """Return the context of the positions int64 [B, K], which may differ between rows."""
        rows = torch.arange(len(positions), device=positions.device)[:, None, None]
        mask = self.mask
        if mask is not None:
            length = mask.shape[-1]
            mask = mask.expand(len(positions), -1, length, length)
            mask = mask[rows, :, positions[:, :, None], positions[:, None, :]].permute(0, 3, 1, 2)
        return Context(mask, None if self.rotary is None else self.rotary[:, positions][:, :, None], self.kernel)


def is_local(config: CramBertConfig, layer: int) -> bool:
    """Return True for a layer with a local window (ModernBERT: Warner et al. 2024, arXiv 2412.13663, section 2.1.2)."""
    return config.local_window is not None and layer % config.global_every != 0


def contexts(
    config: CramBertConfig,
    kernel: AttentionKernel,
    hidden: torch.Tensor,
    attention_mask: torch.Tensor | None,
    document_ids: torch.Tensor | None,
    causal: torch.Tensor | None,
) -> tuple[Context, Context | None]:
    """Build the context of the global layers, and of the local ones if there are any.

    Args:
        config: of the model.
        kernel: computes attention.
        hidden: the embedded rows, [B, L, H].
        attention_mask: see Rows.
        document_ids: see Rows.
        causal: see Rows.
    """
    batch, length, width = hidden.shape
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype

    def of(local: bool) -> Context:
        rows = Rows(config, local, batch, length, hidden.device, dtype, attention_mask, document_ids, causal)
        rotary = None
        if config.positions == "rotary":
            theta = config.local_rope_theta if local and config.local_rope_theta is not None else config.rope_theta
            rotary = rotary_table(length, width // config.num_attention_heads, theta, hidden.device)
        return Context(kernel.mask(rows), rotary, kernel, neighbours)

    neighbours = None
    if config.short_convolution:
        neighbours = visible_neighbours(config.short_convolution, attention_mask, document_ids, causal)
    has_local = any(is_local(config, layer) for layer in range(config.num_hidden_layers))
    return of(local=False), of(local=True) if has_local else None


class SelfAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2) with a fused QKV projection and the context's kernel.

    `qk_norm` normalises queries and keys per head (Henry et al. 2020, arXiv 2010.04245; Dehghani et al. 2023, arXiv
    2302.05442). With `value_embedding`, values are a learned mix of the projection and that embedding, initially half
    of each; in Zhou et al. 2024 (arXiv 2410.17897, section 4) the first layer's values take the embedding's place.
    `attention_gate` is the gate of GPT-BERT (Charpentier and Samuel 2024, arXiv 2410.24159, section 2).
    """

    def __init__(self, config: CramBertConfig, has_value_embedding: bool = False) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        self.gate = None
        if config.attention_gate:
            self.gate = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        head_size = config.hidden_size // config.num_attention_heads
        self.query_norm = nn.RMSNorm(head_size, eps=_QK_EPS) if config.qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(head_size, eps=_QK_EPS) if config.qk_norm else nn.Identity()
        self.value_shares = nn.Parameter(torch.empty(2)) if has_value_embedding else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the values to the mean of projection and embedding."""
        if self.value_shares is not None:
            nn.init.constant_(self.value_shares, 0.5)

    def forward(
        self, hidden: torch.Tensor, context: Context, value_embedding: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attend within the rows: `hidden` and `value_embedding` [B, L, H] -> [B, L, H]."""
        batch, length, width = hidden.shape
        qkv = self.qkv(hidden).view(batch, length, 3, self.num_heads, width // self.num_heads)
        # Each [B, heads, L, H / heads]. Unbinding first lets the backward pass write the gradient of qkv contiguously.
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
        query, key = self.query_norm(query), self.key_norm(key)
        if context.rotary is not None:
            query, key = rotate(query, context.rotary), rotate(key, context.rotary)
        if self.value_shares is not None and value_embedding is not None:
            embedded = value_embedding.view(batch, length, self.num_heads, -1).transpose(1, 2)
            value = (self.value_shares[0] * value + self.value_shares[1] * embedded).to(query.dtype)
        dropout = self.dropout if self.training else 0.0
        attended = context.kernel.attend(query, key, value, context.mask, dropout)
        attended = attended.transpose(1, 2).reshape(batch, length, width)
        return self.out(attended if self.gate is None else attended * F.gelu(self.gate(hidden)))
