"""Speed of a training step on a GPU, estimated from the card's data sheet.

Matrix products run at a share of the card's stated rate. Operations bound by memory run between them, at its stated
bandwidth: docs/explanation/gpu-estimate.md has the arithmetic and published measurements beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import nn
from transformers import PreTrainedModel

from cram_composer.config.messages import not_one_of
from cram_composer.errors import CramError
from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM
from cram_composer.models.crambert.stacks import PlainStack
from cram_composer.models.replaced_tokens import ReplacedTokenDetector

_GIB = 1 << 30
# Bytes per token that generated kernels read and write in forward and backward of a layer in 16 bits, as Inductor
# lowers it for a GPU (benchmarks/gpu_lowering; tests/lowering compares).
_LAYER_BYTES = 56  # per hidden unit: norms, residual sums, layouts of gradients
_FP32_RESIDUAL_BYTES = 30  # more per hidden unit with the residual stream in fp32
_ROTARY_BYTES = 10  # per hidden unit
# Per unit of `intermediate_size`, the width of the product before the activation.
_GATED_BYTES, _MLP_BYTES = 8, 10
_CAST_BYTES = 12  # per weight and microbatch: weights to bf16, and their gradients to fp32
# Per hidden unit and layer: queries, keys, values and the output of attention, and their gradients, in bf16.
_ATTENTION_BYTES = 24
_LOGIT_BYTES = 8  # per element: read twice for the softmax, and in the backward replaced by the gradient, in bf16


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet.

    Attributes:
        name: the vendor's name.
        flops: dense products per second of 16-bit numbers with fp32 accumulation.
        bandwidth: bytes per second of its memory.
        memory: bytes.
        products: share of `flops` that products of about a thousand columns reach.
        capability: compute capability, 10 x major + minor.
    """

    name: str
    flops: float
    bandwidth: float
    memory: int
    products: float
    capability: int

    @property
    def precision(self) -> str:
        """The fastest precision: bf16 from Ampere on, fp16 before."""
        return "bf16" if self.capability >= 80 else "fp16"


CARDS = {
    "2080ti": Card("RTX 2080 Ti", 53.8e12, 616e9, 11 * _GIB, 0.8, 75),
    "a4000": Card("RTX A4000", 76.7e12, 448e9, 16 * _GIB, 0.8, 86),
    "3090": Card("RTX 3090", 71.2e12, 936e9, 24 * _GIB, 0.8, 86),
    "4090": Card("RTX 4090", 165.2e12, 1008e9, 24 * _GIB, 0.8, 89),
    "5090": Card("RTX 5090", 209.5e12, 1792e9, 32 * _GIB, 0.8, 120),
    "a6000": Card("RTX A6000", 154.8e12, 768e9, 48 * _GIB, 0.8, 86),
    "a100": Card("A100 SXM 80 GB", 312e12, 2039e9, 80 * _GIB, 0.8, 80),
    "h100": Card("H100 SXM", 989.4e12, 3350e9, 80 * _GIB, 0.65, 90),
    "h200": Card("H200 SXM", 989.4e12, 4800e9, 141 * _GIB, 0.65, 90),
}


def find_card(name: str) -> Card:
    """Return a card by its short name. Raises CramError."""
    if name not in CARDS:
        raise CramError(f"--card: {not_one_of(name, CARDS)}")
    return CARDS[name]


def card_prices(items: Sequence[str]) -> dict[str, float]:
    """Parse prices per hour, each as NAME=AMOUNT, by the short name of the card. Raises CramError."""
    prices = {}
    for item in items:
        name, _, amount = item.partition("=")
        if name not in CARDS:
            raise CramError(f"--price {item}: {not_one_of(name, CARDS)}")
        try:
            prices[name] = float(amount)
        except ValueError:
            prices[name] = math.nan
        if not 0.0 < prices[name] < math.inf:
            raise CramError(f"--price {item}: must be an amount > 0, such as {name}=0.5")
    return prices


def memory_bytes_per_token(
    model: PreTrainedModel, length: int, predicted: float, microbatch: int, precision: str
) -> float:
    """Estimate the bytes that operations bound by memory move per token, forward and backward.

    Args:
        model: the model; one of transformers must name its sizes like BERT.
        length: tokens of a row.
        predicted: tokens of a row whose logits CramBERT computes; a model of transformers computes those of all.
        microbatch: rows of a microbatch.
        precision: "bf16" or "fp16".
    """
    config = model.config
    generator = 0.0
    if isinstance(model, ReplacedTokenDetector):
        generator = memory_bytes_per_token(model.generator, length, predicted, microbatch, precision)
    layers = blocks = float(config.num_hidden_layers)
    gated = rotary = low_residual = False
    if isinstance(model, CramBertForMaskedLM):  # some stacks repeat layers, or shorten the row
        passes = cast(PlainStack, model.encoder.stack).passes(length)
        layers = sum(tokens for _, tokens in passes) / length
        blocks = sum(tokens for layer, tokens in passes if (layer + 1) % config.ffn_every == 0) / length
        gated, rotary = config.ffn in ("geglu", "swiglu"), config.positions == "rotary"
        low_residual = precision == "bf16" and not model.encoder.residual_in_fp32
    residual = 0 if low_residual else _FP32_RESIDUAL_BYTES
    per_layer = config.hidden_size * (_LAYER_BYTES + residual + _ATTENTION_BYTES + (_ROTARY_BYTES if rotary else 0))
    per_block = config.intermediate_size * (_GATED_BYTES if gated else _MLP_BYTES)
    own = (part for name, part in model.named_modules() if not name.startswith("generator."))
    casts = _CAST_BYTES * sum(part.weight.numel() for part in own if isinstance(part, nn.Linear))
    has_head = getattr(model, "head", True) is not None
    share = predicted / length if isinstance(model, CramBertForMaskedLM) else 1.0
    logits = _LOGIT_BYTES * config.vocab_size * share if has_head else 0.0
    return generator + layers * per_layer + blocks * per_block + logits + casts / (microbatch * length)


def estimated_flops(card: Card, flops_per_token: float, bytes_per_token: float) -> float:
    """Estimate the model FLOP/s of a card from the FLOPs and the memory traffic of a token."""
    seconds = flops_per_token / (card.products * card.flops) + bytes_per_token / card.bandwidth
    return flops_per_token / seconds
