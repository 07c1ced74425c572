"""CramBERT: the encoder of crammed BERT (arXiv 2212.14034) as a transformers model.

This file and those it imports travel with exported models; they import only torch, transformers and each other.

All models return the outputs of transformers, or tuples with `return_dict=False`. Their arguments, unless documented
otherwise, are those of CramBertModel. `token_type_ids` are accepted because tokenizers of BERT return them; they have
no effect, since CramBERT is trained without segments.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import (
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils.generic import can_return_tuple

# transformers copies the files that this one imports, but not their imports; hence the unused ones below.
from .attention import SelfAttention  # noqa: F401
from .configuration_crambert import CramBertConfig
from .convolution import ShortConvolution  # noqa: F401
from .embeddings import Embeddings  # noqa: F401
from .encoder import CramBertModel, CramBertPreTrainedModel
from .feedforward import FEEDFORWARDS  # noqa: F401
from .funnel import Funnel  # noqa: F401
from .heads import ClassificationHead, MaskedLMHead, TokenHead, classification_loss
from .initialization import init_weights  # noqa: F401
from .layer import CramBertLayer  # noqa: F401
from .layer_calls import pick
from .norms import NORMS  # noqa: F401
from .positions import sinusoids  # noqa: F401
from .stacks import STACKS  # noqa: F401
from .token_dropping import TokenDropping  # noqa: F401

CramBertModel.__module__ = __name__  # `save_pretrained` copies the file of this module and its imports


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

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        masked_positions: torch.Tensor | None = None,
        document_ids: torch.Tensor | None = None,
        causal: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> MaskedLMOutput:
        """Predict tokens, everywhere or only at `masked_positions`.

        Args:
            labels: int64, -100 where nothing is predicted; [B, L], or [B, K] with `masked_positions`.
            masked_positions: int64 [B, K], columns of the masked tokens or, with `config.shift`, of the tokens before
                them. Their hidden states are gathered before the decoder, so that it runs on B*K rows of a static
                shape (the paper's sparse prediction).

        Returns:
            loss (mean nats over labels != -100, None without labels) and logits [B, L, V] or [B, K, V]; in training,
            the logits may be None.
        """
        encoded = self.encoder(
            input_ids,
            attention_mask,
            inputs_embeds=inputs_embeds,
            document_ids=document_ids,
            causal=causal,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        hidden = encoded.last_hidden_state
        if masked_positions is not None:
            hidden = pick(hidden, masked_positions)
        elif self.config.shift:
            hidden = torch.cat((hidden[:, :1], hidden[:, :-1]), dim=1)
        loss, logits = self.head(hidden, labels)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )


class CramBertForSequenceClassification(CramBertPreTrainedModel):
    """The encoder with a classifier of texts, or a regressor when `num_labels` is 1."""

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__(config)
        self.encoder = CramBertModel(config)
        self.classifier = ClassificationHead(config, cast(int, config.num_labels))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Classify texts.

        Args:
            labels: [B] int64 for one class per text, float [B] or [B, num_labels] for regression, [B, num_labels] of 0
                and 1 for several classes per text.

        Returns:
            loss and logits [B, num_labels]; `classification_loss` describes the loss by `config.problem_type`.
        """
        encoded = self.encoder(
            input_ids,
            attention_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(encoded.last_hidden_state, attention_mask)
        loss = None if labels is None else classification_loss(logits, labels, self.config.problem_type)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )


class CramBertForTokenClassification(CramBertPreTrainedModel):
    """The encoder with a classifier of tokens, for named entities and the like."""

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__(config)
        self.encoder = CramBertModel(config)
        self.classifier = TokenHead(config, cast(int, config.num_labels))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> TokenClassifierOutput:
        """Classify tokens.

        Args:
            labels: int64 [B, L], -100 where there is none.

        Returns:
            loss (mean cross-entropy over labels != -100) and logits [B, L, num_labels].
        """
        encoded = self.encoder(
            input_ids,
            attention_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(encoded.last_hidden_state)
        loss = None if labels is None else self.loss_function(logits, labels, self.config)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )


class CramBertForQuestionAnswering(CramBertPreTrainedModel):
    """The encoder with a pointer to the first and the last token of an answer in the text."""

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__(config)
        self.encoder = CramBertModel(config)
        self.classifier = TokenHead(config, num_labels=2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> QuestionAnsweringModelOutput:
        """Find answers.

        Args:
            start_positions: int64 [B], places of the first tokens of answers; those beyond the row are ignored.
            end_positions: int64 [B], places of the last tokens.

        Returns:
            loss (mean cross-entropy of both places) and start_logits and end_logits [B, L].
        """
        encoded = self.encoder(
            input_ids,
            attention_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        start, end = self.classifier(encoded.last_hidden_state).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start.float(), end.float(), start_positions, end_positions)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start,
            end_logits=end,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class CramBertForMultipleChoice(CramBertPreTrainedModel):
    """The encoder with a score for each of several choices."""

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__(config)
        self.encoder = CramBertModel(config)
        self.classifier = ClassificationHead(config, num_labels=1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> MultipleChoiceModelOutput:
        """Choose among C texts per example; inputs are [B, C, L] or, for `inputs_embeds`, [B, C, L, H].

        Args:
            labels: int64 [B], the right choices.

        Returns:
            loss (mean cross-entropy) and logits [B, C]; hidden states and attentions have B * C rows.
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None:
            raise ValueError("give either input_ids or inputs_embeds")
        batch, choices = given.shape[:2]
        input_ids, attention_mask, inputs_embeds = (
            None if tensor is None else tensor.flatten(0, 1) for tensor in (input_ids, attention_mask, inputs_embeds)
        )
        encoded = self.encoder(
            input_ids,
            attention_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(encoded.last_hidden_state, attention_mask).view(batch, choices)
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )


# Makes `save_pretrained` copy these files into the folder, also after fine-tuning.
CramBertConfig.register_for_auto_class()
CramBertModel.register_for_auto_class("AutoModel")
CramBertForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
CramBertForMultipleChoice.register_for_auto_class("AutoModelForMultipleChoice")
CramBertForQuestionAnswering.register_for_auto_class("AutoModelForQuestionAnswering")
CramBertForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
CramBertForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
