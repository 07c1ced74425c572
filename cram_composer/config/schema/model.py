"""The `model` section of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cram_composer.config.schema.fields import choice, number

# What every architecture has under these names, or maps to its own.
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")
HF_KEYS = ("architecture", "hf_name", "hf_overrides", *SIZES)  # all that is read with `architecture: hf`


@dataclass
class ModelConfig:
    """The encoder; `architecture: hf` takes any `transformers` masked LM instead, of these sizes, the rest its own."""

    architecture: str = choice("crambert", "hf")
    hidden_size: int = number(768, 1)
    num_hidden_layers: int = number(16, 1)
    num_attention_heads: int = number(12, 1)
    intermediate_size: int = number(3072, 1)  # width of the up-projection; a gated FFN halves it
    stack: str = choice("plain", "input-skip", "elc", "recurrent", "funnel", "token-dropping")  # how layers are chained
    repeats: int = number(4, 1)  # stack recurrent: times that its layers are run through
    dropped_tokens: float = number(0.5, 0.0, 0.9)  # stack token-dropping: share that the middle layers do not see
    norm: str = choice("layernorm", "rmsnorm")
    norm_position: str = choice("pre", "post", "sandwich")  # before blocks, after the sum, around blocks
    norm_eps: float = 1e-12
    norm_bias: bool = True
    embedding_norm: bool = True
    first_norm: bool = True  # pre-norm: the norm before the first attention, which repeats that of the embedding
    final_norm: bool = True  # pre-norm and sandwich: after the last layer
    qk_norm: bool = False  # RMSNorm of queries and keys, per head
    attention_gate: bool = False  # what a head has gathered is multiplied by gelu of a projection of its input
    ffn: str = choice("geglu", "gelu", "swiglu", "relu2")
    ffn_every: int = number(1, 1)  # only every k-th layer has a feed-forward block
    positions: str = choice("scaled-sinusoidal", "sinusoidal", "learned", "rotary", "alibi", "none")
    max_position_embeddings: int = number(512, 1)
    rope_theta: float = number(10000.0, 1.0)
    local_rope_theta: float | None = number(None, 1.0)  # of layers with local attention; default: rope_theta
    local_window: int | None = number(None, 2)  # keys that a token sees in local layers, half of them on each side
    global_every: int = number(3, 1)  # with local_window, every k-th layer, from the first, sees everything
    attention_bias: bool = False
    mlp_bias: bool = False
    value_embeddings: int = number(0, 0)  # token embeddings added to the values of so many first and last layers
    short_convolution: int = number(0, 0)  # tokens, odd, of a convolution before each block; 0: none
    head_transform: bool = False  # a dense layer, gelu and a norm before the decoder, as BERT's
    head_bias: bool = False
    tie_word_embeddings: bool = True
    logit_softcap: float | None = number(None, 1e-6)  # logits x become c tanh(x / c)
    initializer_range: float = 0.02
    output_init: str = choice("normal", "scaled", "zero")  # projections that end in the residual stream
    mup_base_width: int | None = number(None, 1)  # hidden size that start and logits are those of, see recipes/mup.yaml
    hidden_dropout_prob: float = number(0.0, 0.0, 0.9)
    attention_probs_dropout_prob: float = number(0.0, 0.0, 0.9)
    document_masking: bool = False  # in pretraining, attention does not cross from one document of a row to another
    # In training; the last two are for CUDA. auto: eager on a CPU, else sdpa; eager holds all products of short rows.
    attention_kernel: str = choice("auto", "sdpa", "eager", "flex", "flash")
    loss_kernel: str = choice("full", "chunked", "liger")  # the latter two never hold all logits; liger is for CUDA
    hf_name: str | None = None  # model type for `architecture: hf`: bert, modernbert, ...
    hf_overrides: dict[str, Any] = field(default_factory=dict)  # values of that model's own config class
