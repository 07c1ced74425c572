"""Model FLOPs per token, for model FLOPs utilisation."""

from __future__ import annotations

from typing import cast

from torch import nn
from transformers import PreTrainedModel

from cram_composer.models.crambert.attention import is_local
from cram_composer.models.crambert.configuration_crambert import CramBertConfig
from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM
from cram_composer.models.crambert.stacks import PlainStack
from cram_composer.models.replaced_tokens import ReplacedTokenDetector


def flops_per_token(model: PreTrainedModel, seq_length: int, masked_per_row: float | None = None) -> float:
    """Count the floating-point operations of forward and backward per input token.

    Follows PaLM (arXiv 2204.02311, appendix B): 6 per weight of a linear layer, for each pass of a token through it,
    plus 12 * H * L in each layer for the two matrix products of bidirectional attention to L tokens. CramBERT's head
    runs on `masked_per_row` of the `seq_length` positions (None: all of them), that of a model of transformers on all.
    Embedding look-ups, norms, short convolutions, activations and recomputation are not counted. Replaced-token
    detection counts both networks.
    """
    if isinstance(model, CramBertForMaskedLM):
        share = 1.0 if masked_per_row is None else masked_per_row / seq_length
        total = _crambert_encoder(model, seq_length)
        if isinstance(model, ReplacedTokenDetector):
            generator = flops_per_token(model.generator, seq_length, masked_per_row)
            total += generator + 6 * _weights(model.detector)
        return total + (0 if model.head is None else 6 * _weights(model.head) * share)
    attention = 12 * model.config.num_hidden_layers * model.config.hidden_size * seq_length
    return 6 * _weights(model) + attention


def _crambert_encoder(model: CramBertForMaskedLM, seq_length: int) -> float:
    config = cast(CramBertConfig, model.config)
    weights = [_weights(layer) for layer in model.encoder.layers]
    passes = cast(PlainStack, model.encoder.stack).passes(seq_length)
    total = 6.0 * _weights(model.encoder.embeddings) * seq_length
    for index, tokens in passes:
        seen = tokens
        if is_local(config, index):
            assert config.local_window is not None
            seen = min(tokens, 2 * (config.local_window // 2) + 1)
        total += tokens * (6 * weights[index] + 12 * config.hidden_size * seen)
    return total / seq_length


def _weights(module: nn.Module) -> int:
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
