"""Heads on the last hidden states of any encoder of transformers, the same for all models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from cram_composer.models.crambert.heads import mean_pool


class WordTagger(nn.Module):
    """An encoder with dropout and a linear layer on every token, as in BERT's own token classification.

    Args:
        encoder: without a head.
        num_labels: number of classes.
        dropout: dropout before the linear layer.
    """

    def __init__(self, encoder: PreTrainedModel, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.config = encoder.config
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(encoder.config.hidden_size, num_labels)
        nn.init.normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, labels: torch.Tensor | None = None, **inputs: torch.Tensor) -> TokenClassifierOutput:
        """Return logits [B, L, num_labels] and the mean cross-entropy over the labels other than -100, int64 [B, L]."""
        hidden = self.encoder(**inputs).last_hidden_state
        logits = self.classifier(self.dropout(hidden))
        if labels is None:
            return TokenClassifierOutput(logits=logits)
        total = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum")
        return TokenClassifierOutput(loss=total / (labels >= 0).sum().clamp(min=1), logits=logits)


class PairEmbedder(nn.Module):
    """An encoder whose mean hidden state, of length 1, is the embedding of a text; trained on pairs of similar texts.

    Args:
        encoder: without a head.
        temperature: divides the cosines in the loss.
    """

    def __init__(self, encoder: PreTrainedModel, temperature: float) -> None:
        super().__init__()
        self.config = encoder.config
        self.encoder = encoder
        self.temperature = temperature

    def forward(self, labels: torch.Tensor | None = None, **inputs: torch.Tensor) -> SequenceClassifierOutput:
        """Return the embeddings [B, 2, H] of pairs in rows 2B, and a loss.

        The loss (InfoNCE, arXiv 1807.03748) is the cross-entropy of finding the second text of a pair among those of
        all pairs. `labels`, int64 [B, 2], number the texts; other pairs with the same first or second text are not
        negatives.
        """
        hidden = self.encoder(**inputs).last_hidden_state
        pooled = mean_pool(hidden.float(), inputs["attention_mask"])
        embeddings = F.normalize(pooled, dim=-1).view(-1, 2, pooled.shape[-1])
        if labels is None:
            return SequenceClassifierOutput(logits=embeddings)
        first, second = embeddings.unbind(dim=1)
        with torch.autocast(first.device.type, enabled=False):  # the temperature magnifies rounding errors
            logits = first @ second.T / self.temperature
        own = torch.arange(len(labels), device=logits.device)
        shared = (labels[:, None] == labels[None]).any(dim=-1) & (own[:, None] != own)
        loss = F.cross_entropy(logits.masked_fill(shared, -torch.inf), own)
        return SequenceClassifierOutput(loss=loss, logits=embeddings)
