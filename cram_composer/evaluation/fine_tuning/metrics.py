"""What GLUE and SuperGLUE score predictions with, in percent as tables show them; by torchmetrics where it has them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torchmetrics import Metric, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import (
    BinaryF1Score,
    BinaryMatthewsCorrCoef,
    MulticlassAccuracy,
    MulticlassF1Score,
)

from cram_composer.evaluation.fine_tuning.encode import Encoded
from cram_composer.evaluation.fine_tuning.tasks import Task

# Of predictions and labels [N]; the number is that of labels.
_OF_ROWS: dict[str, Callable[[int], Metric]] = {
    "accuracy": lambda labels: MulticlassAccuracy(labels, average="micro"),
    "f1": lambda labels: BinaryF1Score(),
    "macro_f1": lambda labels: MulticlassF1Score(labels, average="macro"),
    "matthews": lambda labels: BinaryMatthewsCorrCoef(),
    "pearson": lambda labels: PearsonCorrCoef(),
    "spearman": lambda labels: SpearmanCorrCoef(),
}


def _exact_match(logits: torch.Tensor, rows: Encoded) -> torch.Tensor:
    """The share of groups all of whose candidates are classified as they should be."""
    return _worst(logits.argmax(dim=-1) == rows.labels, rows.groups).mean()


def _parity(logits: torch.Tensor, rows: Encoded) -> torch.Tensor:
    """The share of groups whose candidates are all classified alike."""
    predicted = logits.argmax(dim=-1)
    return torch.maximum(_worst(predicted == 0, rows.groups), _worst(predicted == 1, rows.groups)).mean()


def _choice_accuracy(logits: torch.Tensor, rows: Encoded) -> torch.Tensor:
    """The share of groups whose chosen candidate is right."""
    return rows.labels[_chosen(logits, rows.groups)].float().mean()


def _choice_credit(logits: torch.Tensor, rows: Encoded) -> torch.Tensor:
    """The mean credit of the chosen candidates."""
    return rows.credits[_chosen(logits, rows.groups)].mean()


_OF_GROUPS: dict[str, Callable[[torch.Tensor, Encoded], torch.Tensor]] = {
    "exact_match": _exact_match,
    "parity": _parity,
    "choice_accuracy": _choice_accuracy,
    "choice_credit": _choice_credit,
}


def score(task: Task, logits: torch.Tensor, rows: Encoded) -> dict[str, float]:
    """Every metric of a task, in percent.

    Args:
        task: what was predicted.
        logits: fp32 [N, num_labels].
        rows: what should have been.

    Returns:
        By metric. A correlation with constant predictions, which has no value, counts as 0, as Matthews' does.
    """
    predicted = logits.squeeze(-1) if task.is_regression else logits.argmax(dim=-1)
    if task.is_regression and bool((predicted == predicted[0]).all()):
        return dict.fromkeys(task.metrics, 0.0)
    found = {}
    for name in task.metrics:
        if name in _OF_ROWS:
            found[name] = 100.0 * float(_OF_ROWS[name](task.num_labels)(predicted, rows.labels))
        else:
            found[name] = 100.0 * float(_OF_GROUPS[name](logits, rows))
    return found


def _worst(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """The least of a group's values, fp32 [groups]."""
    return torch.ones(int(groups.max()) + 1).scatter_reduce(0, groups, values.float(), "amin")


def _chosen(logits: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """For every group the row whose odds of being right are best, the first of equals; int64 [groups]."""
    odds = logits[:, 1] - logits[:, 0]
    count = int(groups.max()) + 1
    best = torch.full((count,), -torch.inf).scatter_reduce(0, groups, odds, "amax")
    rows = torch.arange(len(odds)).where(odds == best[groups], len(odds))
    return torch.full((count,), len(odds)).scatter_reduce(0, groups, rows, "amin")
