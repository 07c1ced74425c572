"""Metrics of GLUE and SuperGLUE in percent, by torchmetrics where available."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torchmetrics import Metric, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import (
    BinaryF1Score,
    BinaryMatthewsCorrCoef,
    MulticlassAccuracy,
    MulticlassF1Score,
)

from cram_composer.evaluation.fine_tuning.encode import EncodedRows
from cram_composer.evaluation.tasks.task import Task

# Metrics of predictions and labels [N], by the number of labels.
_ROW_METRICS: dict[str, Callable[[int], Metric]] = {
    "accuracy": lambda labels: MulticlassAccuracy(labels, average="micro"),
    "f1": lambda labels: BinaryF1Score(),
    "macro_f1": lambda labels: MulticlassF1Score(labels, average="macro"),
    "matthews": lambda labels: BinaryMatthewsCorrCoef(),
    "pearson": lambda labels: PearsonCorrCoef(),
    "spearman": lambda labels: SpearmanCorrCoef(),
}


def _exact_match(logits: torch.Tensor, rows: EncodedRows) -> torch.Tensor:
    """Return the share of groups whose examples are all classified correctly."""
    return _group_minimum(logits.argmax(dim=-1) == rows.labels, rows.groups).mean()


def _parity(logits: torch.Tensor, rows: EncodedRows) -> torch.Tensor:
    """Return the share of groups whose examples are all classified the same."""
    predicted = logits.argmax(dim=-1)
    return torch.maximum(
        _group_minimum(predicted == 0, rows.groups), _group_minimum(predicted == 1, rows.groups)
    ).mean()


def _choice_accuracy(logits: torch.Tensor, rows: EncodedRows) -> torch.Tensor:
    """Return the share of groups whose chosen example is right."""
    return rows.labels[_best_examples(logits, rows.groups)].float().mean()


def _choice_credit(logits: torch.Tensor, rows: EncodedRows) -> torch.Tensor:
    """Return the mean credit of the chosen examples."""
    return rows.credits[_best_examples(logits, rows.groups)].mean()


_GROUP_METRICS: dict[str, Callable[[torch.Tensor, EncodedRows], torch.Tensor]] = {
    "exact_match": _exact_match,
    "parity": _parity,
    "choice_accuracy": _choice_accuracy,
    "choice_credit": _choice_credit,
}


def compute_metrics(task: Task, logits: torch.Tensor, rows: EncodedRows) -> dict[str, float]:
    """Compute every metric of a task in percent.

    Args:
        task: the task.
        logits: fp32 [N, num_labels].
        rows: with the expected labels.

    Returns:
        values by metric. A correlation with constant predictions is undefined and counts as 0, like Matthews'.
    """
    predicted = logits.squeeze(-1) if task.is_regression else logits.argmax(dim=-1)
    if task.is_regression and bool((predicted == predicted[0]).all()):
        return dict.fromkeys(task.metrics, 0.0)
    found = {}
    for name in task.metrics:
        if name in _ROW_METRICS:
            found[name] = 100.0 * float(_ROW_METRICS[name](task.num_labels)(predicted, rows.labels))
        else:
            found[name] = 100.0 * float(_GROUP_METRICS[name](logits, rows))
    return found


def span_scores(task: Task, predicted: torch.Tensor, rows: EncodedRows) -> dict[str, float]:
    """Compute precision, recall and F1 in percent of the entities found: those with the right words and type.

    Args:
        task: whose labels are O, B-TYPE and I-TYPE.
        predicted: int64 [W], classes of all words.
        rows: with the expected classes.
    """
    from nervaluate import Evaluator

    assert rows.sentences is not None
    spans = rows.sentences.tolist()
    tags = [
        [[task.labels[number] for number in classes[start:end]] for start, end in itertools.pairwise(spans)]
        for classes in (rows.labels.tolist(), predicted.tolist())
    ]
    types = sorted({label[2:] for label in task.labels if label != "O"})
    found = Evaluator(*tags, tags=types, loader="list").evaluate()["overall"]["strict"]
    values = {"span_f1": found.f1, "span_precision": found.precision, "span_recall": found.recall}
    return {metric: 100.0 * float(values[metric]) for metric in task.metrics}


def _group_minimum(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Return the minimum of each group's values, fp32 [groups]."""
    return torch.ones(int(groups.max()) + 1).scatter_reduce(0, groups, values.float(), "amin")


def _best_examples(logits: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Return for each group the first row with the highest odds of being right; int64 [groups]."""
    odds = logits[:, 1] - logits[:, 0]
    count = int(groups.max()) + 1
    best = torch.full((count,), -torch.inf).scatter_reduce(0, groups, odds, "amax")
    rows = torch.arange(len(odds)).where(odds == best[groups], len(odds))
    return torch.full((count,), len(odds)).scatter_reduce(0, groups, rows, "amin")
