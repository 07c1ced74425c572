"""Fine-tune a model on one task with one seed, and score it: the unit of work of an evaluation."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from cram_composer.config.schema.evaluation import ProtocolConfig
from cram_composer.errors import CramError
from cram_composer.evaluation.fine_tuning.encode import Encoded, collate, epochs, moved, scoring_batches
from cram_composer.evaluation.fine_tuning.metrics import score
from cram_composer.evaluation.fine_tuning.tasks import Task

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


@dataclass(frozen=True)
class Outcome:
    """Scores in percent, by scored split and metric, and what it took."""

    scores: dict[str, dict[str, float]]
    steps: int
    seconds: float  # of fine-tuning and scoring
    examples_per_second: float  # of fine-tuning
    train_loss: float  # mean over the last tenth of the steps


def task_settings(protocol: ProtocolConfig, task: str) -> ProtocolConfig:
    """The protocol with what it overrides for one task."""
    own = protocol.overrides.get(task)
    return protocol.model_copy(update=own.model_dump(exclude_none=True) if own is not None else {})


def fine_tune(
    model: PreTrainedModel,
    task: Task,
    rows: dict[str, Encoded],
    settings: ProtocolConfig,
    seed: int,
    device: torch.device,
    precision: str,
    report: Callable[[float], None] = lambda progress: None,
) -> Outcome:
    """Train `model` on rows["train"] and score it on the splits that the task is scored on.

    Args:
        model: with a fresh head; changed in place.
        task: whose metrics are taken.
        rows: by split.
        settings: of this task, see `task_settings`.
        seed: of the order of rows and of dropout.
        device: to train on.
        precision: "bf16", "fp16" or "fp32"; weights stay in fp32.
        report: called with the share of steps that are done.

    Raises:
        CramError: the loss is not a number.
    """
    torch.manual_seed(seed)
    started = time.monotonic()
    model.train().to(device)  # type: ignore[arg-type]
    train, pad = rows["train"], _pad(model)
    steps = settings.epochs * math.ceil(train.size / settings.batch_size)
    optimizer = _optimizer(model, settings, device)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(settings, step, steps))
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    recent = torch.zeros((), device=device)
    first_recent = steps - max(1, steps // 10)
    for step, batch in enumerate(epochs(train, settings.batch_size, settings.epochs, seed)):
        with autocast(device, precision):
            loss = model(**moved(collate(train, batch, pad), device)).loss
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
    model: PreTrainedModel, task: Task, rows: Encoded, settings: ProtocolConfig, device: torch.device, precision: str
) -> dict[str, float]:
    """Every metric of `task` on `rows`, in percent."""
    model.eval()
    logits = torch.empty(rows.size, task.num_labels)
    for batch in scoring_batches(rows, settings.eval_batch_size):
        with autocast(device, precision):
            inputs = moved(collate(rows, batch, _pad(model)), device)
            logits[batch] = model(**inputs).logits.float().cpu()
    return score(task, logits, rows)


def rate(settings: ProtocolConfig, step: int, steps: int) -> float:
    """The learning rate of `step` (from 0) of `steps` over its peak: a linear warmup, then the schedule's way to 0."""
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
    """The forward in `precision`, which is no change in fp32."""
    dtype = _DTYPES[precision]
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _optimizer(model: PreTrainedModel, settings: ProtocolConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW; biases and norms are not decayed."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    first, second = settings.betas
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(first, second), eps=settings.eps, fused=True)


def _pad(model: PreTrainedModel) -> int:
    return int(model.config.pad_token_id or 0)
