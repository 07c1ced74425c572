"""CramBERT: the encoder of crammed BERT (arXiv 2212.14034) as a transformers model.

This file and those it imports travel with exported models: they import torch, transformers and each other, no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput

from .attention import DENSE, AttentionKernel, SelfAttention, contexts
from .configuration_crambert import CramBertConfig

# transformers brings along what this file imports, but not what only those files import: hence the unused ones.
from .convolution import ShortConvolution  # noqa: F401
from .embeddings import Embeddings
from .feedforward import GLU, MLP
from .funnel import Funnel  # noqa: F401
from .heads import ClassificationHead, MaskedLMHead
from .layer import CramBertLayer
from .layer_calls import LayerCalls, pick
from .norms import norm_if
from .positions import sinusoids  # noqa: F401
from .stacks import STACKS
from .token_dropping import TokenDropping  # noqa: F401


class CramBertPreTrainedModel(PreTrainedModel):
    """Weight initialisation and what transformers wants to know."""

    config_class = CramBertConfig  # type: ignore[assignment]
    base_model_prefix = "encoder"
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        """Normal with `initializer_range` (0.02) for every matrix, zero biases: BERT's and the cramming code's.

        The matrices of blocks are then multiplied by their `init_scale`.
        """
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            scale = getattr(module, "init_scale", 1.0)
            # transformers guards the functions of nn.init, but not this product, against weights that were loaded.
            if scale != 1.0 and not getattr(module.weight, "_is_hf_initialized", False):
                with torch.no_grad():
                    module.weight.mul_(scale)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif callable(reset := getattr(module, "reset_parameters", None)):
            reset()  # norms and positions know their own start


def _set_init_scales(model: nn.Module, config: CramBertConfig) -> None:
    """Set `init_scale` of the matrices in blocks, from `output_init` and `matrix_init_scale`.

    On the matrices, because transformers 5 does not call `_init_weights` for modules without parameters of their own.
    """
    depth = (2 * config.num_hidden_layers) ** -0.5
    output_scale = {"normal": 1.0, "scaled": depth, "zero": 0.0}[config.output_init]
    for block in model.modules():
        if isinstance(block, SelfAttention | MLP | GLU):
            output = block.out if isinstance(block, SelfAttention) else block.w_out
            for matrix in block.children():
                if isinstance(matrix, nn.Linear):
                    scale = config.matrix_init_scale * (output_scale if matrix is output else 1.0)
                    matrix.init_scale = scale  # type: ignore[assignment]


class CramBertModel(CramBertPreTrainedModel):
    """The bare encoder: embedding, layers, a last norm.

    `attention_kernel` computes attention in training; evaluation is torch's scaled_dot_product_attention.
    """

    attention_kernel: AttentionKernel = DENSE

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(CramBertLayer(config, index) for index in range(config.num_hidden_layers))
        self.value_embeddings = nn.ModuleList(
            nn.Embedding(config.vocab_size, config.hidden_size) for _ in range(config.value_embeddings)
        )
        self.stack = STACKS[config.stack](config)
        self.final_norm = norm_if(config.final_norm and config.norm_position != "post", config)
        _set_init_scales(self, config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word_embeddings = value  # type: ignore[assignment]

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        document_ids: torch.Tensor | None = None,
        causal: torch.Tensor | None = None,
    ) -> BaseModelOutput:
        """`input_ids` int64 [B, L]; `attention_mask` [B, L], 0 at padding -> last_hidden_state [B, L, H].

        With `document_ids` int64 [B, L] a token attends to those of the same number in its row. Padding is to have a
        number of its own, such as -1, and takes no `attention_mask` then. In rows where `causal` bool [B] is true, a
        token attends to nothing after it.
        """
        hidden = self.embeddings(input_ids)
        config = cast(CramBertConfig, self.config)
        layers = cast(Sequence[CramBertLayer], self.layers)
        kernel = self.attention_kernel if self.training else DENSE
        known = contexts(config, kernel, hidden, attention_mask, document_ids, causal)
        values = [embedding(input_ids) for embedding in self.value_embeddings]
        hidden = self.stack(LayerCalls(layers, known, values), hidden)
        return BaseModelOutput(last_hidden_state=self.final_norm(hidden))


class CramBertForMaskedLM(CramBertPreTrainedModel):
    """The encoder with a decoder, tied to its token embedding unless `tie_word_embeddings` is off."""

    _tied_weights_keys = {"head.decoder.weight": "encoder.embeddings.word_embeddings.weight"}  # type: ignore[assignment]  # noqa: RUF012

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__(config)
        self.encoder = CramBertModel(config)
        self.head = MaskedLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.head.decoder = value

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        masked_positions: torch.Tensor | None = None,
        document_ids: torch.Tensor | None = None,
        causal: torch.Tensor | None = None,
    ) -> MaskedLMOutput:
        """Predict tokens, everywhere or only at `masked_positions`.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], 0 at padding; None for rows without padding.
            labels: int64, -100 where there is nothing to predict; [B, L], or [B, K] with `masked_positions`.
            masked_positions: int64 [B, K], columns whose hidden states predict, those of the masked tokens or, with
                `config.shift`, those before them. The hidden states are gathered before the decoder, so
                that it runs on B*K rows of a static shape (the paper's sparse prediction).
            document_ids: int64 [B, L], of several documents in a row: attention stays within each, see CramBertModel.
            causal: bool [B], rows in which a token attends to nothing after it.

        Returns:
            loss (mean nats over labels != -100, None without labels) and logits [B, L, V] or [B, K, V]; a loss kernel
            may do without logits in training.
        """
        hidden = self.encoder(input_ids, attention_mask, document_ids, causal).last_hidden_state
        if masked_positions is not None:
            hidden = pick(hidden, masked_positions)
        elif self.config.shift:
            hidden = torch.cat((hidden[:, :1], hidden[:, :-1]), dim=1)
        loss, logits = self.head(hidden, labels)
        return MaskedLMOutput(loss=loss, logits=logits)


class CramBertForSequenceClassification(CramBertPreTrainedModel):
    """The encoder with a sentence classifier, or a regressor when `num_labels` is 1."""

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__(config)
        self.encoder = CramBertModel(config)
        self.classifier = ClassificationHead(config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """`input_ids` int64 [B, L], `labels` [B] (float for regression, int64 otherwise) -> loss, logits [B, C].

        `config.problem_type` is "regression" (mean squared error) or "single_label_classification" (cross-entropy);
        None follows `num_labels`.
        """
        hidden = self.encoder(input_ids, attention_mask).last_hidden_state
        logits = self.classifier(hidden, attention_mask)
        if labels is None:
            return SequenceClassifierOutput(logits=logits)
        kind = self.config.problem_type or ("regression" if self.config.num_labels == 1 else None)
        if kind == "regression":
            loss = F.mse_loss(logits.float().view_as(labels), labels.float())
        else:
            loss = F.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)  # type: ignore[arg-type]


# `save_pretrained` then copies these files into the folder, also after fine-tuning.
CramBertConfig.register_for_auto_class()
CramBertModel.register_for_auto_class("AutoModel")
CramBertForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
CramBertForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
