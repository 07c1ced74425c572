"""Heads on the last hidden states of any encoder of transformers, the same for all models."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from cram_composer.models.crambert.heads import classification_loss, first_pool, mean_pool

_HEAD_WIDTH = 1024  # as in the cramming code


class TextClassifier(nn.Module):
    """An encoder with a pooling, a tanh layer, dropout and a linear layer, for texts and pairs of texts.

    Args:
        encoder: without a head.
        num_labels: number of classes, or 1 for a regression.
        dropout: dropout before the linear layer.
        pooling: "first" (token), "mean" (over tokens), "attention" (a mean with learned weights), or "pair": of pairs
            the means u and v of their texts, |u - v| and u v (Conneau et al. 2017, arXiv 1705.02364, section 3.1, with
            the product), of single texts the mean; these means leave out special tokens.
        pairs: the task has pairs of texts.
    """

    def __init__(self, encoder: PreTrainedModel, num_labels: int, dropout: float, pooling: str, pairs: bool) -> None:
        super().__init__()
        self.config = encoder.config
        self.encoder = encoder
        width = encoder.config.hidden_size
        self.scores = nn.Linear(width, 1, bias=False) if pooling == "attention" else None
        self.pool: Callable[[torch.Tensor, dict[str, torch.Tensor]], torch.Tensor] = {
            "first": lambda hidden, inputs: first_pool(hidden, None),
            "mean": lambda hidden, inputs: mean_pool(hidden, inputs["attention_mask"]),
            "attention": self._attention,
            "pair": _compared if pairs else lambda hidden, inputs: mean_pool(hidden, inputs["sides"] == 1),
        }[pooling]
        self.dense = nn.Linear(4 * width if pooling == "pair" and pairs else width, _HEAD_WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(_HEAD_WIDTH, num_labels)
        for layer in (self.scores, self.dense, self.out):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self._problem = "regression" if num_labels == 1 else "single_label_classification"

    def forward(
        self, labels: torch.Tensor | None = None, sides: torch.Tensor | None = None, **inputs: torch.Tensor
    ) -> SequenceClassifierOutput:
        """Return logits [B, num_labels] and the mean loss over `labels` [B]; `sides` [B, L] as in EncodedRows."""
        hidden = self.encoder(**inputs).last_hidden_state
        known = inputs if sides is None else {**inputs, "sides": sides}
        pooled = self.pool(hidden, known)
        features = self.dropout(torch.tanh(self.dense(pooled)))
        with torch.autocast(features.device.type, enabled=False):  # bf16 would round choices of a text to ties
            logits = self.out(features.float())
        loss = None if labels is None else classification_loss(logits, labels, self._problem)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _attention(self, hidden: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        assert self.scores is not None
        scores = self.scores(hidden).float().masked_fill(inputs["attention_mask"].unsqueeze(-1) == 0, -torch.inf)
        return (hidden * scores.softmax(dim=1).to(hidden.dtype)).sum(dim=1)


def _compared(hidden: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the features [B, 4H] of pairs of texts."""
    u, v = (mean_pool(hidden, inputs["sides"] == side) for side in (1, 2))
    return torch.cat((u, v, (u - v).abs(), u * v), dim=-1)


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
