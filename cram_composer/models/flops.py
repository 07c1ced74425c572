"""Model FLOPs per token, for model FLOPs utilisation."""

from __future__ import annotations

from typing import cast

from torch import nn
from transformers import PreTrainedModel


def flops_per_token(model: PreTrainedModel, seq_length: int, masked_per_row: int | None = None) -> float:
    """Floating-point operations of forward and backward, per input token (PaLM, arXiv 2204.02311, appendix B).

    6 per weight of every linear layer a token passes through, plus 12 * layers * H * L for the two matrix products of
    bidirectional attention. The decoder counts for the `masked_per_row` of `seq_length` positions it runs on (None:
    all of them). Embedding look-ups, norms and activations count for nothing, recomputation neither.
    """
    decoder = cast(nn.Linear, model.get_output_embeddings())
    linears = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not decoder]
    dense = sum(linear.weight.numel() for linear in linears)
    share = 1.0 if masked_per_row is None else masked_per_row / seq_length
    attention = 12 * model.config.num_hidden_layers * model.config.hidden_size * seq_length
    return 6 * (dense + decoder.weight.numel() * share) + attention
