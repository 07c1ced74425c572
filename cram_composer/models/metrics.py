"""Evaluation metrics of a masked LM that add up exactly over batches of different sizes and over ranks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torchmetrics import Metric

from cram_composer.data.masking import IGNORED


class MaskedLoss(Metric):
    """Cross-entropy in nats per predicted token: summed over all tokens, divided once."""

    full_state_update = False
    total: torch.Tensor
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a batch: `logits` [B, K, V], `labels` int64 [B, K] with -100 where nothing is predicted."""
        losses = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        self.total += losses.double().sum()
        self.count += (labels != IGNORED).sum()

    def compute(self) -> torch.Tensor:
        return self.total / self.count


class MaskedAccuracy(Metric):
    """Share of predicted tokens whose largest logit is the label's."""

    full_state_update = False
    correct: torch.Tensor
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("correct", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a batch: `logits` [B, K, V], `labels` int64 [B, K] with -100 where nothing is predicted."""
        self.correct += (logits.argmax(dim=-1) == labels).sum()  # a prediction is never -100
        self.count += (labels != IGNORED).sum()

    def compute(self) -> torch.Tensor:
        return self.correct / self.count
