"""Held-out loss (nats at 15 % all-[MASK]) as a Composer evaluator: in the loop on a schedule, and at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from composer import DataSpec, Evaluator
from composer.core import Event, State

from cram_composer.budget.budget import Budget
from cram_composer.data.loading.stream import Batch


def held_out_label(kind: str, name: str) -> str:
    """Return the label of an evaluator, and of its metrics in the log: KIND, or KIND-NAME for a named set."""
    return f"{kind}-{name}" if name else kind


def build_held_out_evaluator(
    label: str,
    batches: list[Batch],
    batch_size: int,
    metrics: Iterable[str],
    due: Callable[[State, Event], bool] | None = None,
) -> Evaluator:
    """Build an evaluator of the model's `metrics` over `batches`, to run in the loop whenever `due` returns True."""
    return Evaluator(
        label=label,
        dataloader=DataSpec(
            batches,  # each rank has its own, so Composer's samplers must not divide them
            get_num_samples_in_batch=lambda batch: batch["input_ids"].shape[0],
        ),
        metric_names=list(metrics),
        eval_interval=due if due is not None and batches else 0,
        device_eval_microbatch_size=batch_size,
    )


def due_at_progress_interval(interval: float, budget: Budget) -> Callable[[State, Event], bool]:
    """Return a function that is True after the steps at which progress passes a multiple of `interval`.

    It skips the last multiple: the final evaluation outside the budget uses more rows and takes no training time.
    """
    passed: int | None = None

    def due(state: State, event: Event) -> bool:
        nonlocal passed
        if event != Event.BATCH_END or interval <= 0.0 or budget.progress > 1.0 - 0.5 * interval:
            return False
        # The first call after a start only records the position.
        before, passed = passed, int(budget.progress / interval)
        return before is not None and passed > before

    return due
