"""Fine-tune a model on one task with one seed and score it: one job of an evaluation."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from cram_composer.config.schema.evaluation import FineTuningConfig, FineTuningProtocol
from cram_composer.errors import CramError
from cram_composer.evaluation.fine_tuning.encode import (
    EncodedRows,
    collate,
    epoch_batches,
    scoring_batches,
    to_device,
    words_at,
)
from cram_composer.evaluation.fine_tuning.heads import PairEmbedder, TextClassifier, WordTagger
from cram_composer.evaluation.fine_tuning.metrics import compute_metrics, span_scores
from cram_composer.evaluation.fine_tuning.pairs import pair_scores
from cram_composer.evaluation.tasks.task import Task
from cram_composer.optim.parameters import describe_parameters

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


Model = PreTrainedModel | TextClassifier | WordTagger | PairEmbedder
_SCORES = {"sequence": compute_metrics, "words": span_scores, "embedding": pair_scores}


@dataclass(frozen=True)
class Outcome:
    """Scores in percent by split and metric, and the cost."""

    scores: dict[str, dict[str, float]]
    steps: int
    seconds: float  # of fine-tuning and scoring
    examples_per_second: float  # of fine-tuning
    train_loss: float  # mean over the last tenth of the steps


def task_settings(protocol: FineTuningProtocol, task: str) -> FineTuningProtocol:
    """Return the protocol with its overrides for one task."""
    own = protocol.overrides.get(task)
    return protocol.model_copy(update=own.model_dump(exclude_none=True) if own is not None else {})


def fine_tune(
    model: Model,
    task: Task,
    rows: dict[str, EncodedRows],
    settings: FineTuningConfig,
    seed: int,
    device: torch.device,
    precision: str,
    report: Callable[[float], None] = lambda progress: None,
) -> Outcome:
    """Train `model` on rows["train"] and score it on the task's scored splits.

    Args:
        model: with a new head; changed in place.
        task: the task.
        rows: encoded rows by split.
        settings: settings of this task, see `task_settings`.
        seed: determines the order of rows and dropout.
        device: to train on.
        precision: "bf16", "fp16" or "fp32"; weights stay in fp32.
        report: called with the fraction of steps done.

    Raises:
        CramError: the loss is not finite.
    """
    torch.manual_seed(seed)
    started = time.monotonic()
    model.train().to(device)
    train, pad = rows["train"], _pad_id(model)
    steps = settings.epochs * math.ceil(train.size / settings.batch_size)
    optimizer = _build_optimizer(model, settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(settings, step, steps))
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    recent = torch.zeros((), device=device)
    first_recent = steps - max(1, steps // 10)
    for step, batch in enumerate(epoch_batches(train, settings.batch_size, settings.epochs, seed)):
        with autocast(device, precision):
            loss = model(**to_device(collate(train, batch, pad), device)).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step >= first_recent:
            recent += loss.detach()
        report((step + 1) / steps)
    train_loss = float(recent) / (steps - first_recent)
    if not math.isfinite(train_loss):
        raise CramError(f"{task.name}, seed {seed}: the loss is {train_loss}; lower lr, or use precision=fp32")
    trained = time.monotonic() - started
    scores = {split: evaluate(model, task, rows[split], settings, device, precision) for split in task.scored}
    seconds = time.monotonic() - started
    return Outcome(scores, steps, seconds, settings.epochs * train.size / trained, train_loss)


@torch.inference_mode()
def evaluate(
    model: Model,
    task: Task,
    rows: EncodedRows,
    settings: FineTuningConfig,
    device: torch.device,
    precision: str,
) -> dict[str, float]:
    """Compute every metric of `task` on `rows`, in percent."""
    model.eval()
    outputs: torch.Tensor | None = None  # of every example; of words, their classes: 0, which is O, without a piece
    for batch in scoring_batches(rows, settings.eval_batch_size):
        inputs = to_device(collate(rows, batch, _pad_id(model)), device)
        del inputs["labels"]
        with autocast(device, precision):
            found = model(**inputs).logits.float().cpu()
        if task.head == "words":
            words = words_at(rows, batch)
            batch, found = words[words >= 0], found.argmax(dim=-1)[words >= 0]
        if outputs is None:
            outputs = found.new_zeros(len(rows.labels), *found.shape[1:])
        outputs[batch] = found
    assert outputs is not None
    return _SCORES[task.head](task, outputs, rows)


def lr_factor(settings: FineTuningConfig, step: int, steps: int) -> float:
    """Return the learning rate of `step` (from 0) of `steps` relative to its peak: linear warmup, then the schedule."""
    warmup = settings.warmup * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1.0, steps - warmup)
    return {
        "constant": 1.0,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress))),
        "linear": max(0.0, 1.0 - progress),
    }[settings.schedule]


def autocast(device: torch.device, precision: str) -> Any:
    """Return a context for forward passes in `precision`; it does nothing for fp32."""
    dtype = _DTYPES[precision]
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _build_optimizer(model: Model, settings: FineTuningConfig) -> torch.optim.AdamW:
    """Build AdamW without weight decay for biases and norms, and with lower rates for lower layers if configured."""
    described = describe_parameters(model)
    deepest = max(parameter.depth for parameter in described)
    found: dict[tuple[bool, int], list[torch.nn.Parameter]] = {}
    for one in described:
        depth = deepest if settings.layer_lr_decay is None else one.depth
        found.setdefault((one.parameter.ndim >= 2, depth), []).append(one.parameter)
    groups = [
        {
            "params": parameters,
            "lr": settings.lr * (settings.layer_lr_decay or 1.0) ** (deepest - depth),
            "weight_decay": settings.weight_decay if decayed else 0.0,
        }
        for (decayed, depth), parameters in found.items()
    ]
    first, second = settings.betas
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(first, second), eps=settings.eps, fused=True)


def _pad_id(model: Model) -> int:
    return int(model.config.pad_token_id or 0)
