"""Heads of the encoder and their losses: masked LM, texts and tokens. This file travels with exported models."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_crambert import CramBertConfig
from .embeddings import projection
from .norms import NORMS


class HeadTransform(nn.Module):
    """The layers before BERT's decoder: dense layer, GELU and norm, [B, N, H] -> [B, N, H]."""

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.mlp_bias)
        self.norm = NORMS[config.norm](config)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.norm(F.gelu(self.dense(hidden)))


class MaskedLMHead(nn.Module):
    """The decoder, usually tied to the token embedding, and the loss, compiled as one module.

    Attributes:
        label_smoothing: of the training loss (Szegedy et al. 2015, arXiv 1512.00567, section 7); not exported.
        loss: the training loss; not exported. It takes hidden states [N, H], the head and labels [N], and returns the
            loss in nats, and logits or None.
    """

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__()
        self.transform = HeadTransform(config) if config.head_transform else nn.Identity()
        width = config.embedding_size or config.hidden_size
        self.projection = projection(config.hidden_size, width)
        self.decoder = nn.Linear(width, config.vocab_size, bias=config.head_bias)
        self.softcap = config.logit_softcap
        self.logit_scale = config.logit_scale
        self.label_smoothing = 0.0
        self.loss: Callable[..., tuple[torch.Tensor, torch.Tensor | None]] = cross_entropy

    def forward(
        self, hidden: torch.Tensor, labels: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the mean loss in nats over labels != -100, and the logits [B, N, V].

        `hidden` is [B, N, H], `labels` int64 [B, N]. In training, the logits may be None.
        """
        hidden = self.projection(self.transform(hidden))
        if labels is None:
            return None, self.logits(hidden)
        loss = self.loss if self.training else cross_entropy
        nats, logits = loss(hidden.flatten(0, 1), self, labels.flatten())
        return nats, None if logits is None else logits.unflatten(0, labels.shape)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Decode [..., H] to [..., V], capped by c tanh(x / c) if configured (Gemma 2, arXiv 2408.00118, section 2)."""
        logits = self.decoder(hidden)
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def cross_entropy(hidden: torch.Tensor, head: MaskedLMHead, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean loss in nats over `labels` int64 [N] != -100, and the logits [N, V] of `hidden` [N, H].

    Without labels, the loss is 0 and has zero gradients.
    """
    logits = head.logits(hidden)
    smoothing = head.label_smoothing if head.training else 0.0
    # fp32, because a log-sum-exp over 32768 logits in bf16 has only two or three digits
    total = F.cross_entropy(logits.float(), labels, ignore_index=-100, label_smoothing=smoothing, reduction="sum")
    return total / (labels != -100).sum().clamp(min=1), logits


def mean_pool(hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Average over the unmasked tokens: [B, L, H] -> [B, H]."""
    if attention_mask is None:
        return hidden.mean(dim=1)
    weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def first_pool(hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Select the first token: [B, L, H] -> [B, H]."""
    return hidden[:, 0]


POOLINGS: dict[str, Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]] = {
    "first": first_pool,
    "mean": mean_pool,
}


class ClassificationHead(nn.Module):
    """Pooling, tanh layer, dropout and linear layer, [B, L, H] -> [B, num_labels]; as in the cramming code."""

    def __init__(self, config: CramBertConfig, num_labels: int) -> None:
        super().__init__()
        self.pool = POOLINGS[config.classifier_pooling]
        self.dense = nn.Linear(config.hidden_size, config.classifier_hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.out = nn.Linear(config.classifier_hidden_size, num_labels)

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        pooled = self.pool(hidden, attention_mask)
        return self.out(self.dropout(torch.tanh(self.dense(pooled))))


class TokenHead(nn.Module):
    """Dropout and linear layer, [B, L, H] -> [B, L, num_labels]."""

    def __init__(self, config: CramBertConfig, num_labels: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.out = nn.Linear(config.hidden_size, num_labels)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.out(self.dropout(hidden))


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, problem_type: str | None) -> torch.Tensor:
    """Return the mean loss of `logits` [B, num_labels] by problem type.

    The mean squared error for "regression", the binary cross-entropy for "multi_label_classification", the
    cross-entropy for "single_label_classification". If `problem_type` is None, one label means regression, integers
    mean one class and other numbers several, as for the models of transformers.
    """
    if problem_type is None:
        one_class = not labels.is_floating_point()
        problem_type = "single_label_classification" if one_class else "multi_label_classification"
        problem_type = "regression" if logits.shape[-1] == 1 else problem_type
    if problem_type == "regression":
        return F.mse_loss(logits.float().view_as(labels), labels.float())
    if problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
    return F.cross_entropy(logits.float(), labels)
