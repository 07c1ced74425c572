"""Attention kernels for CramBERT in training; exported models do not contain them.

torch's scaled_dot_product_attention uses its fast kernels only without a mask over queries and keys. FlexAttention and
flash-attn skip the products that a mask excludes.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from cram_composer.models.crambert.attention import (
    DENSE,
    AttentionKernel,
    DenseAttention,
    Rows,
    attention_weights,
)
from cram_composer.models.crambert.positions import alibi_slopes

log = logging.getLogger(__name__)

_SDPA = "torch scaled_dot_product_attention"
_LONGEST_EAGER = 512  # for 16 rows of 512 tokens and 4 heads, the scores take 64 MiB in fp32
_HALVES = ("bf16", "fp16")  # the precisions that flash-attn supports


class EagerAttention(DenseAttention):
    """Attention by two matrix products that holds all scores, with softmax in fp32.

    On a CPU, training on rows of 128 tokens is 1.5 times as fast as with torch's kernel (benchmarks/RESULTS.md): plain
    matrix products are faster there, and compilation fuses the operations between them.

    Args:
        longest: rows with more tokens use torch's kernel.
    """

    def __init__(self, longest: int = _LONGEST_EAGER) -> None:
        self.longest = longest

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        dropout: float,
    ) -> torch.Tensor:
        """Attend: [B, heads, L, D] -> [B, heads, L, D]."""
        if key.shape[-2] > self.longest:
            return super().attend(query, key, value, mask, dropout)
        weights = F.dropout(attention_weights(query, key, mask), dropout)
        return torch.matmul(weights.to(value.dtype), value)


class FlexMask(NamedTuple):
    """Arguments of FlexAttention: the blocks that are not fully masked, and a function that changes scores."""

    blocks: BlockMask | None
    score: Callable[..., torch.Tensor] | None


class FlexAttention:
    """torch's FlexAttention (Dong et al. 2024, arXiv 2412.05496), which skips fully masked blocks.

    Args:
        compile: False runs torch's reference implementation, which holds all scores; for tests.
    """

    def __init__(self, compile: bool = True) -> None:
        attention: Callable[..., Any] = flex_attention
        self._attention = torch.compile(attention) if compile else attention

    def mask(self, rows: Rows) -> FlexMask:
        """Build the blocks from documents, padding, local window and causal rows, and the ALiBi score function."""
        segments, causal, window = _segments(rows), rows.causal, _half_window(rows)
        blocks = None
        if segments is not None or causal is not None or window is not None:
            everything = torch.ones((), dtype=torch.bool, device=rows.device)

            def allowed(row: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
                result = everything
                if segments is not None:
                    result = result & (segments[row, query] == segments[row, key])
                if window is not None:
                    result = result & ((query - key).abs() <= window)
                if causal is not None:
                    result = result & ((query >= key) | ~causal[row])
                return result

            by_row = None if segments is None and causal is None else rows.batch
            blocks = create_block_mask(allowed, by_row, None, rows.length, rows.length, device=rows.device.type)
        return FlexMask(blocks, _alibi_score(rows))

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: FlexMask, dropout: float
    ) -> torch.Tensor:
        """Attend: [B, heads, L, D] -> [B, heads, L, D]. Ignores `dropout`, which must be 0."""
        return self._attention(query, key, value, score_mod=mask.score, block_mask=mask.blocks)


class FlashMask(NamedTuple):
    """Arguments of flash-attn's varlen kernel: segment starts, window and ALiBi slopes."""

    starts: torch.Tensor  # int32 [S + 1], in the concatenated rows, followed by their total length
    window: tuple[int, int]  # keys before and after a query, -1 for all
    slopes: torch.Tensor | None  # fp32 [heads]


class FlashAttention:
    """flash-attn's kernel for segments of different lengths (Dao 2023, arXiv 2307.08691).

    Each document, each row's padding, or each row is a segment. The kernel computes nothing between two segments and
    holds no mask. Batches that mix causal and bidirectional rows are not supported.
    """

    def __init__(self) -> None:
        from flash_attn import flash_attn_varlen_func

        self._attention = flash_attn_varlen_func

    def mask(self, rows: Rows) -> FlashMask:
        """Find the segment starts in the concatenated rows. Synchronizes with the device once, for their number."""
        segments, window = _segments(rows), _half_window(rows)
        changes = torch.zeros(rows.batch, rows.length, dtype=torch.bool, device=rows.device)
        changes[:, 0] = True
        if segments is not None:
            changes[:, 1:] = segments[:, 1:] != segments[:, :-1]
        starts = changes.flatten().nonzero().flatten()
        end = torch.full_like(starts[:1], changes.numel())
        slopes = None
        if rows.config.positions == "alibi":
            slopes = alibi_slopes(rows.config.num_attention_heads, rows.device)
        reach = -1 if window is None else window
        return FlashMask(torch.cat((starts, end)).to(torch.int32), (reach, reach), slopes)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: FlashMask, dropout: float
    ) -> torch.Tensor:
        """Attend: [B, heads, L, D] -> [B, heads, L, D], in bf16 or fp16."""
        batch, heads, length, size = query.shape
        flat = [x.transpose(1, 2).reshape(batch * length, heads, size) for x in (query, key, value)]
        attended = self._attention(
            *flat,
            cu_seqlens_q=mask.starts,
            cu_seqlens_k=mask.starts,
            max_seqlen_q=length,
            max_seqlen_k=length,
            dropout_p=dropout,
            window_size=mask.window,
            alibi_slopes=mask.slopes,
        )
        return attended.view(batch, length, heads, size).transpose(1, 2)


def _segments(rows: Rows) -> torch.Tensor | None:
    """Return the segment number of each token, [B, L]; tokens attend within their segment, which is contiguous.

    Padding is a separate segment, so that it has keys too.
    """
    return rows.attention_mask if rows.document_ids is None else rows.document_ids


def _half_window(rows: Rows) -> int | None:
    if not rows.local:
        return None
    assert rows.config.local_window is not None
    return rows.config.local_window // 2


def _alibi_score(rows: Rows) -> Callable[..., torch.Tensor] | None:
    if rows.config.positions != "alibi":
        return None
    slopes = alibi_slopes(rows.config.num_attention_heads, rows.device)

    def biased(score: torch.Tensor, row: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        return score - slopes[head] * (query - key).abs()

    return biased


def choose_attention(kernel: str, device: str, precision: str) -> tuple[AttentionKernel, str]:
    """Choose a kernel; return it and its name. Warns if the requested one is unavailable.

    Args:
        kernel: "auto", "sdpa", "eager", "flex" or "flash"; "auto" is "eager" on a CPU, else "sdpa".
        device: "cpu" or "gpu".
        precision: "bf16", "fp16" or "fp32".
    """
    if kernel == "eager" or (kernel == "auto" and device == "cpu"):
        return EagerAttention(), f"matrix products (torch's kernel for rows of more than {_LONGEST_EAGER})"
    if kernel in ("auto", "sdpa"):
        return DENSE, _SDPA
    reason = "needs a GPU"
    if device == "gpu":
        if kernel == "flex":
            return FlexAttention(), f"torch {torch.__version__} flex_attention (triton)"
        reason = f"needs precision {' or '.join(_HALVES)}, got {precision}"
        if precision in _HALVES:
            try:
                return FlashAttention(), f"flash-attn {importlib.metadata.version('flash-attn')} (varlen)"
            except (ImportError, RuntimeError) as error:
                reason = str(error)
    log.warning("model.attention_kernel: %s is unavailable (%s); using %s", kernel, reason, _SDPA)
    return DENSE, _SDPA
