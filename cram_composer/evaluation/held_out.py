"""The held-out loss, in nats at 15 % all-[MASK], as a Composer evaluator: in the loop on a schedule, and at the end."""

from __future__ import annotations

from collections.abc import Callable

from composer import DataSpec, Evaluator
from composer.core import Event, State

from cram_composer.budget.budget import Budget
from cram_composer.data.loading.stream import Batch


def held_out_evaluator(
    label: str, batches: list[Batch], batch_size: int, due: Callable[[State, Event], bool] | None = None
) -> Evaluator:
    """Loss and masked accuracy over `batches`; in the loop when `due` says so, never by itself without it."""
    return Evaluator(
        label=label,
        dataloader=DataSpec(
            batches,  # each rank's own, so that Composer's samplers have nothing to share out
            get_num_samples_in_batch=lambda batch: batch["input_ids"].shape[0],
        ),
        metric_names=["loss", "accuracy"],
        eval_interval=due if due is not None and batches else 0,
        device_eval_microbatch_size=batch_size,
    )


def due_by_progress(interval: float, budget: Budget) -> Callable[[State, Event], bool]:
    """Whether an evaluation is due after this step: each time progress passes a multiple of `interval`.

    The last one is left to the final evaluation outside the budget, which is of more rows and costs no training.
    """
    passed: int | None = None

    def due(state: State, event: Event) -> bool:
        nonlocal passed
        if event != Event.BATCH_END or interval <= 0.0 or budget.progress > 1.0 - 0.5 * interval:
            return False
        # A run that has just begun or resumed first sees where it stands.
        before, passed = passed, int(budget.progress / interval)
        return before is not None and passed > before

    return due
