"""The `model` section of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cram_composer.config.fields import choice, number


@dataclass
class ModelConfig:
    """The encoder; `architecture: hf` takes any `transformers` masked LM instead, of these sizes, the rest its own."""

    architecture: str = choice("crambert", "hf")
    hidden_size: int = number(768, 1)
    num_hidden_layers: int = number(16, 1)
    num_attention_heads: int = number(12, 1)
    intermediate_size: int = number(3072, 1)  # width of the up-projection; a gated FFN halves it
    norm: str = choice("layernorm")
    norm_eps: float = 1e-12
    ffn: str = choice("gelu_glu", "gelu")
    positions: str = choice("scaled-sinusoidal", "sinusoidal", "learned")
    max_position_embeddings: int = number(512, 1)
    attention_bias: bool = False
    mlp_bias: bool = False
    initializer_range: float = 0.02
    document_masking: bool = False  # in pretraining, attention does not cross from one document of a row to another
    hf_name: str | None = None  # model type for `architecture: hf`: bert, modernbert, ...
    hf_overrides: dict[str, Any] = field(default_factory=dict)  # values of that model's own config class
