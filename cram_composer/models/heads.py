"""What sits on the encoder: the masked-LM head and the sentence classifier. This file travels with exported models."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_crambert import CramBertConfig


class MaskedLMHead(nn.Module):
    """A decoder tied to the token embedding, without transform or bias, and the loss: one module, compiled as one."""

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__()
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self, hidden: torch.Tensor, labels: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """`hidden` [B, N, H] and `labels` int64 [B, N] -> mean loss in nats over labels != -100, logits [B, N, V]."""
        logits = self.decoder(hidden)
        if labels is None:
            return None, logits
        # fp32: a log-sum-exp over 32768 logits in bf16 keeps two or three digits
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100), logits


def mean_pool(hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over the unmasked tokens: [B, L, H] -> [B, H]."""
    if attention_mask is None:
        return hidden.mean(dim=1)
    weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1)


def first_pool(hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """The first token's vector: [B, L, H] -> [B, H]."""
    return hidden[:, 0]


POOLINGS: dict[str, Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]] = {
    "first": first_pool,
    "mean": mean_pool,
}


class ClassificationHead(nn.Module):
    """Pool, a tanh layer, dropout, logits: [B, L, H] -> [B, num_labels]. As in the cramming code's fine-tuning."""

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__()
        self.pool = POOLINGS[config.classifier_pooling]
        self.dense = nn.Linear(config.hidden_size, config.classifier_hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.out = nn.Linear(config.classifier_hidden_size, config.num_labels)

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        pooled = self.pool(hidden, attention_mask)
        return self.out(self.dropout(torch.tanh(self.dense(pooled))))
