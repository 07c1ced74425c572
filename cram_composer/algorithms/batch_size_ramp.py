"""Batch-size ramp: the batch grows linearly with budget progress, in whole microbatches."""

from __future__ import annotations

from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from cram_composer.budget.budget import Budget
from cram_composer.budget.schedules import ramp
from cram_composer.config.schema.algorithms import BatchSizeRampConfig
from cram_composer.data.loading.stream import TrainLoader


class BatchSizeRamp(Algorithm):
    """Grow the rows per step from `initial_batch_size` to the full batch at progress `until`.

    Cramming, arXiv 2212.14034, section 4.3. `loader.rows` must be this rank's full batch at construction.
    """

    def __init__(self, config: BatchSizeRampConfig, budget: Budget, loader: TrainLoader, world_size: int) -> None:
        self._until = config.until
        self._budget = budget
        self._loader = loader
        self._last = loader.rows // loader.microbatch
        initial = config.initial_batch_size
        first = 1 if initial is None else initial // (world_size * loader.microbatch)
        self._first = min(first, self._last)  # a preset's ramp may start above a small batch

    def match(self, event: Event, state: State) -> bool:
        """Match before every batch is fetched."""
        return event == Event.BEFORE_DATALOADER

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Set the rows of the next batch."""
        microbatches = round(ramp(self._budget.progress, self._first, self._last, self._until))
        self._loader.rows = microbatches * self._loader.microbatch
