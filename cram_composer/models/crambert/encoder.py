"""The encoder of CramBERT, without a head. This file travels with exported models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import can_return_tuple

from .attention import DENSE, AttentionKernel, ExplicitAttention, compute_dtype, contexts
from .configuration_crambert import CramBertConfig
from .embeddings import Embeddings
from .initialization import init_weights, set_init_scales
from .layer import CramBertLayer
from .layer_calls import LayerCalls
from .norms import norm_if
from .stacks import STACKS


class CramBertPreTrainedModel(PreTrainedModel):
    """Base class with the weight initialisation and the settings that transformers expects."""

    config_class = CramBertConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["CramBertLayer"]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        init_weights(module, self.config.initializer_range)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize everything that has a vector per token, see PreTrainedModel."""
        resized = super().resize_token_embeddings(*args, **kwargs)
        values: Any = self.base_model.value_embeddings
        for index, embedding in enumerate(values):
            values[index] = self._get_resized_embeddings(embedding, resized.num_embeddings)
        return resized


class CramBertModel(CramBertPreTrainedModel):
    """The bare encoder: embedding, layers and final norm.

    Attributes:
        attention_kernel: computes attention in training; evaluation uses torch's scaled_dot_product_attention. With
            `attn_implementation="eager"` or `output_attentions`, both compute the weights explicitly.
        residual_in_fp32: keep the residual stream in fp32 in training under autocast to bf16, else in bf16; the norms
            compute in fp32 either way. Evaluation keeps it in fp32, as does autocast to fp16, for its range.
    """

    attention_kernel: AttentionKernel = DENSE
    residual_in_fp32: bool = True

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(CramBertLayer(config, index) for index in range(config.num_hidden_layers))
        self.value_embeddings = nn.ModuleList(
            nn.Embedding(config.vocab_size, config.hidden_size) for _ in range(config.value_embeddings)
        )
        self.stack = STACKS[config.stack](config)
        self.final_norm = norm_if(config.final_norm and config.norm_position != "post", config)
        set_init_scales(self, config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word_embeddings = value  # type: ignore[assignment]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        document_ids: torch.Tensor | None = None,
        causal: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutput:
        """Encode rows of tokens.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], 0 at padding; None without padding or with `document_ids`.
            token_type_ids: no effect.
            inputs_embeds: [B, L, E], instead of `input_ids`; models with value embeddings need the ids.
            document_ids: int64 [B, L]; tokens attend only within the same number. Padding has a separate number, such
                as -1.
            causal: bool [B], rows in which tokens attend only to themselves and earlier tokens.
            output_attentions: return the attention weights, at the cost of speed and memory.
            output_hidden_states: return the hidden states.

        Returns:
            last_hidden_state [B, L, H]; `hidden_states`, the inputs of the layers in the order in which they ran,
            followed by last_hidden_state; `attentions`, their weights [B, heads, L, L]. L is smaller where the stack
            shortens rows.
        """
        config = cast(CramBertConfig, self.config)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if input_ids is None and config.value_embeddings:
            raise ValueError(
                "inputs_embeds: this model has value embeddings of tokens (value_embeddings); give input_ids"
            )
        wants_weights = config.output_attentions if output_attentions is None else output_attentions
        wants_inputs = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        weights: list[torch.Tensor] | None = [] if wants_weights else None
        inputs: list[torch.Tensor] | None = [] if wants_inputs else None
        kernel = self.attention_kernel if self.training else DENSE
        if wants_weights or config._attn_implementation == "eager":
            kernel = ExplicitAttention(weights)
        hidden = self.embeddings(input_ids, inputs_embeds)
        if self.training and not self.residual_in_fp32 and compute_dtype(hidden) == torch.bfloat16:
            hidden = hidden.bfloat16()
        layers = cast(Sequence[CramBertLayer], self.layers)
        known = contexts(config, kernel, hidden, attention_mask, document_ids, causal)
        values = [embedding(input_ids) for embedding in self.value_embeddings]
        hidden = self.final_norm(self.stack(LayerCalls(layers, known, values, inputs), hidden))
        return BaseModelOutput(
            last_hidden_state=hidden,
            hidden_states=None if inputs is None else (*inputs, hidden),
            attentions=None if weights is None else tuple(weights),
        )
