"""Heads on the last hidden states of any encoder of transformers, the same for all models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput


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
