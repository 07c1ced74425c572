"""What GLUE scores predictions with, by torchmetrics, in percent as tables show them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torchmetrics import Metric, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import BinaryF1Score, BinaryMatthewsCorrCoef, MulticlassAccuracy

from cram_composer.evaluation.tasks import Task

# The number is that of labels.
METRICS: dict[str, Callable[[int], Metric]] = {
    "accuracy": lambda labels: MulticlassAccuracy(labels, average="micro"),
    "f1": lambda labels: BinaryF1Score(),
    "matthews": lambda labels: BinaryMatthewsCorrCoef(),
    "pearson": lambda labels: PearsonCorrCoef(),
    "spearman": lambda labels: SpearmanCorrCoef(),
}


def score(task: Task, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Every metric of a task, in percent.

    Args:
        task: what was predicted.
        logits: fp32 [N, num_labels].
        labels: [N], ids of classes, or numbers of a regression.

    Returns:
        By metric. A correlation with constant predictions, which has no value, counts as 0, as Matthews' does.
    """
    predicted = logits.squeeze(-1) if task.is_regression else logits.argmax(dim=-1)
    if task.is_regression and bool((predicted == predicted[0]).all()):
        return dict.fromkeys(task.metrics, 0.0)
    return {name: 100.0 * float(METRICS[name](task.num_labels)(predicted, labels)) for name in task.metrics}
