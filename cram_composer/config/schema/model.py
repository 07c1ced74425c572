"""The `model` section: the encoder and its masked-LM head."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from cram_composer.config.schema.base import Rate, Settings, key

# Sizes of every architecture; transformers maps these names to those of the model.
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")
HF_KEYS = ("architecture", "hf_name", "hf_overrides", *SIZES)  # keys that have an effect with `architecture: hf`

_FEWEST_LAYERS = {"funnel": 5, "token-dropping": 3}  # token dropping keeps all tokens in the first and last layer


class ModelConfig(Settings):
    """The encoder. `architecture: hf` builds any masked LM of transformers from the sizes and its own defaults."""

    architecture: Literal["crambert", "hf"] = key("crambert", "CramBERT, or the model `hf_name` of transformers")
    hidden_size: PositiveInt = key(768, "width of the residual stream", le=65_536)
    embedding_size: PositiveInt | None = key(
        None, "width of the token embedding, projected to hidden_size; null: hidden_size", le=65_536
    )
    num_hidden_layers: PositiveInt = key(16, "encoder layers", le=1024)
    num_attention_heads: PositiveInt = key(12, "attention heads; must divide `hidden_size`", le=4096)
    intermediate_size: PositiveInt = key(3072, "width of the up-projection; a gated FFN halves it", le=262_144)
    stack: Literal["plain", "input-skip", "elc", "recurrent", "funnel", "token-dropping"] = key(
        "plain", "how the layers are chained"
    )
    repeats: PositiveInt = key(4, "stack=recurrent: passes through the layers", le=1024)
    dropped_tokens: Rate = key(0.5, "stack=token-dropping: share skipped by the middle layers")
    norm: Literal["layernorm", "rmsnorm"] = key("layernorm", "normalisation layer")
    norm_position: Literal["pre", "post", "sandwich"] = key(
        "pre", "before the blocks, after the residual sum, or around the blocks"
    )
    norm_eps: PositiveFloat = key(1e-12, "added to the variance", le=1.0)
    norm_bias: bool = key(True, "bias in layernorm")
    embedding_norm: bool = key(True, "norm after the embedding")
    first_norm: bool = key(True, "pre-norm and sandwich: norm before the first attention, besides the embedding's")
    final_norm: bool = key(True, "pre-norm and sandwich: norm after the last layer")
    qk_norm: bool = key(False, "RMSNorm of queries and keys, per head")
    attention_gate: bool = key(False, "multiply each head's output by gelu of a projection of its input")
    ffn: Literal["geglu", "gelu", "swiglu", "relu2"] = key("geglu", "activation of the FFN")
    ffn_every: PositiveInt = key(1, "only every k-th layer has an FFN", le=1024)
    positions: Literal["scaled-sinusoidal", "sinusoidal", "learned", "rotary", "alibi", "none"] = key(
        "scaled-sinusoidal", "position encoding"
    )
    max_position_embeddings: PositiveInt = key(512, "longest row of tokens", le=131_072)
    rope_theta: float = key(10000.0, "positions=rotary: base of the angles", ge=1.0, le=1e12)
    local_rope_theta: float | None = key(
        None, "base of the angles in layers with local attention; null: rope_theta", ge=1.0, le=1e12
    )
    local_window: int | None = key(None, "tokens visible in local layers, half on each side", ge=2, le=131_072)
    global_every: PositiveInt = key(3, "with local_window: every k-th layer, from the first, is global", le=1024)
    attention_bias: bool = key(False, "biases in attention projections")
    mlp_bias: bool = key(False, "biases in the FFN")
    value_embeddings: int = key(
        0, "number of first and of last layers that add a token embedding to the attention values", ge=0, le=1024
    )
    short_convolution: int = key(0, "tokens (odd) of a convolution before each block; 0: none", ge=0, le=1023)
    head_transform: bool = key(False, "dense layer, gelu and norm before the decoder, as in BERT")
    head_bias: bool = key(False, "bias of the decoder")
    tie_word_embeddings: bool = key(True, "the decoder shares the token embedding")
    logit_softcap: float | None = key(None, "replace logits x by c tanh(x / c)", ge=1e-6, le=1e6)
    initializer_range: PositiveFloat = key(0.02, "standard deviation of initial weights", le=10.0)
    output_init: Literal["normal", "scaled", "zero"] = key(
        "normal", "initial weights of projections into the residual stream"
    )
    mup_base_width: PositiveInt | None = key(
        None,
        "muP: hidden size for which initial weights, logits and learning rates are given; see recipe mup",
        le=65_536,
    )
    hidden_dropout_prob: Rate = key(0.0, "dropout of embeddings and block outputs")
    attention_probs_dropout_prob: Rate = key(0.0, "dropout of attention weights")
    document_masking: bool = key(False, "restrict attention to a token's own document in pretraining")
    attention_kernel: Literal["auto", "sdpa", "eager", "flex", "flash"] = key(
        "auto", "attention in training; flex and flash need CUDA; auto: eager on a CPU, else sdpa"
    )
    residual_in_fp32: bool = key(
        True, "residual stream in fp32 in training; false: in bf16, unless precision=auto chooses fp16"
    )
    loss_kernel: Literal["full", "chunked", "liger"] = key(
        "full", "chunked and liger never hold all logits; liger needs CUDA"
    )
    hf_name: str | None = key(None, "architecture=hf: model type, such as bert or modernbert")
    hf_overrides: dict[str, Any] = key(dict, "architecture=hf: keys of its config class")

    @model_validator(mode="after")
    def _check_sizes(self) -> ModelConfig:
        if self.architecture == "hf":
            if self.hf_name is None:
                raise ValueError("hf_name: required by architecture=hf, such as model.hf_name=bert")
            return self
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size: {self.hidden_size} is not divisible by num_attention_heads={self.num_attention_heads}"
            )
        for name in ("hidden_size", "intermediate_size"):
            if getattr(self, name) % 2:
                raise ValueError(f"{name}: must be even, got {getattr(self, name)}")
        if self.positions == "rotary" and (width := self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"num_attention_heads: head width must be even with positions=rotary, got hidden_size="
                f"{self.hidden_size} / {self.num_attention_heads} = {width}"
            )
        if self.value_embeddings > (self.num_hidden_layers + 1) // 2:
            raise ValueError(
                f"value_embeddings: must be <= half of the {self.num_hidden_layers} layers, got {self.value_embeddings}"
            )
        if self.short_convolution and self.short_convolution % 2 == 0:
            raise ValueError(f"short_convolution: must be odd or 0, got {self.short_convolution}")
        if self.num_hidden_layers < (fewest := _FEWEST_LAYERS.get(self.stack, 1)):
            raise ValueError(
                f"num_hidden_layers: must be >= {fewest} with stack={self.stack}, got {self.num_hidden_layers}"
            )
        return self
