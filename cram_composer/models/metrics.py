"""Evaluation metrics of a masked LM that add up exactly over batches of different sizes and over ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torchmetrics import Metric

from cram_composer.data.masking import IGNORED

Quotient = Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]

# Metrics of a detector of replaced tokens, each a sum over batches divided by another.
DETECTION: dict[str, Quotient] = {
    "detector_loss": lambda found: (found["loss"] * found["judged"], found["judged"]),
    "detected": lambda found: (found["detected"], found["replaced"]),
    "false_alarms": lambda found: (found["false_alarms"], found["judged"] - found["replaced"]),
}


class MaskedLoss(Metric):
    """Cross-entropy in nats per predicted token: summed over all tokens, divided once.

    Attributes:
        rows: per batch, the summed loss and the number of predicted tokens of each row, float64 [B, 2].
    """

    full_state_update = False
    total: torch.Tensor
    count: torch.Tensor
    rows: list[torch.Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.rows = []  # no state: each rank keeps its own

    def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a batch: `logits` [B, K, V], `labels` int64 [B, K] with -100 where nothing is predicted."""
        losses = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        of_rows = losses.double().view(labels.shape).sum(dim=1)
        predicted = (labels != IGNORED).sum(dim=1)
        self.rows.append(torch.stack([of_rows, predicted.double()], dim=1))
        self.total += of_rows.sum()
        self.count += predicted.sum()

    def reset(self) -> None:
        super().reset()
        self.rows = []

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


class Detection(Metric):
    """The loss of a detector in nats per token judged, the share of replaced tokens that it found, or of false alarms.

    Args:
        name: one of DETECTION.
    """

    full_state_update = False
    part: torch.Tensor
    whole: torch.Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self._quotient = name
        self.add_state("part", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("whole", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, detection: dict[str, torch.Tensor]) -> None:
        """Add the detection of a batch, see ReplacedTokenOutput."""
        part, whole = DETECTION[self._quotient](detection)
        self.part += part
        self.whole += whole

    def compute(self) -> torch.Tensor:
        return self.part / self.whole
