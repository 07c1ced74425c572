"""CramBERT: the encoder of crammed BERT (arXiv 2212.14034) as a transformers model.

This file and those it imports travel with exported models; they import only torch, transformers and each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput

from .attention import DENSE, AttentionKernel, SelfAttention, compute_dtype, contexts
from .configuration_crambert import CramBertConfig

# transformers copies the files that this one imports, but not their imports; hence the unused ones below.
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
    """Base class with the weight initialisation and the settings that transformers expects."""

    config_class = CramBertConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        """Initialize matrices from a normal distribution (`initializer_range`) and biases to zero, as BERT does.

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
            reset()  # norms and positions initialize themselves


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
    """The bare encoder: embedding, layers and final norm.

    Attributes:
        attention_kernel: computes attention in training; evaluation uses torch's scaled_dot_product_attention.
        residual_in_fp32: keep the residual stream in fp32 in training under autocast, else in autocast's dtype; the
            norms compute in fp32 either way. Evaluation keeps it in fp32.
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
        """Encode rows of tokens.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], 0 at padding; None without padding or with `document_ids`.
            document_ids: int64 [B, L]; tokens attend only within the same number. Padding has a separate number, such
                as -1.
            causal: bool [B], rows in which tokens attend only to themselves and earlier tokens.

        Returns:
            last_hidden_state [B, L, H].
        """
        hidden = self.embeddings(input_ids)
        if self.training and not self.residual_in_fp32:
            hidden = hidden.to(compute_dtype(hidden))
        config = cast(CramBertConfig, self.config)
        layers = cast(Sequence[CramBertLayer], self.layers)
        kernel = self.attention_kernel if self.training else DENSE
        known = contexts(config, kernel, hidden, attention_mask, document_ids, causal)
        values = [embedding(input_ids) for embedding in self.value_embeddings]
        hidden = self.stack(LayerCalls(layers, known, values), hidden)
        return BaseModelOutput(last_hidden_state=self.final_norm(hidden))


class CramBertForMaskedLM(CramBertPreTrainedModel):
    """The encoder with a masked-LM head, tied to its token embedding unless `tie_word_embeddings` is False."""

    _tied_weights_keys = {"head.decoder.weight": "encoder.embeddings.word_embeddings.weight"}  # noqa: RUF012

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
            labels: int64, -100 where nothing is predicted; [B, L], or [B, K] with `masked_positions`.
            masked_positions: int64 [B, K], columns of the masked tokens or, with `config.shift`, of the tokens before
                them. Their hidden states are gathered before the decoder, so that it runs on B*K rows of a static
                shape (the paper's sparse prediction).
            document_ids: see CramBertModel.
            causal: see CramBertModel.

        Returns:
            loss (mean nats over labels != -100, None without labels) and logits [B, L, V] or [B, K, V]; in training,
            the logits may be None.
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
        """Classify sentences.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], 0 at padding.
            labels: [B] int64 for one class per sentence, float [B] or [B, num_labels] for regression, [B, num_labels]
                of 0 and 1 for several classes per sentence.

        Returns:
            loss and logits [B, num_labels]. The loss is the mean squared error, the cross-entropy or the binary
            cross-entropy, if `config.problem_type` is "regression", "single_label_classification" or
            "multi_label_classification". If it is None, one label means regression, integers mean one class and other
            numbers several, as for the models of transformers.
        """
        hidden = self.encoder(input_ids, attention_mask).last_hidden_state
        logits = self.classifier(hidden, attention_mask)
        if labels is None:
            return SequenceClassifierOutput(logits=logits)
        kind = self.config.problem_type
        if kind is None:
            one_class = not labels.is_floating_point()
            kind = "single_label_classification" if one_class else "multi_label_classification"
            kind = "regression" if self.config.num_labels == 1 else kind
        if kind == "regression":
            loss = F.mse_loss(logits.float().view_as(labels), labels.float())
        elif kind == "multi_label_classification":
            loss = F.binary_cross_entropy_with_logits(logits.float(), labels.float())
        else:
            loss = F.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


# Makes `save_pretrained` copy these files into the folder, also after fine-tuning.
CramBertConfig.register_for_auto_class()
CramBertModel.register_for_auto_class("AutoModel")
CramBertForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
CramBertForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
