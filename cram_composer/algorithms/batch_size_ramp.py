"""Batch-size ramp: the batch grows linearly with budget progress, independent of microbatches and devices."""

from __future__ import annotations

import math

from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from cram_composer.budget.budget import Budget
from cram_composer.budget.schedules import ramp
from cram_composer.config.schema.algorithms import BatchSizeRampConfig
from cram_composer.data.loading.stream import TrainLoader

_INITIAL_SHARE = 32  # of the full batch: 256 of 8192 rows
_MIN_INITIAL = 16


class BatchSizeRamp(Algorithm):
    """Grow the rows per step from `initial_batch_size` to the full batch at progress `until`, in multiples of it.

    Cramming, arXiv 2212.14034, section 4.3. `loader.rows` must be this rank's full batch at construction.
    """

    def __init__(self, config: BatchSizeRampConfig, budget: Budget, loader: TrainLoader, world_size: int) -> None:
        self._until = config.until
        self._budget = budget
        self._loader = loader
        self._last = loader.rows
        initial = config.initial_batch_size or max(_MIN_INITIAL, loader.rows * world_size // _INITIAL_SHARE)
        self._first = min(math.ceil(initial / world_size), self._last)  # a ramp may start above a small batch

    def match(self, event: Event, state: State) -> bool:
        """Match before every batch is fetched."""
        return event == Event.BEFORE_DATALOADER

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Set the rows of the next batch."""
        multiple = round(ramp(self._budget.progress, 1.0, self._last / self._first, self._until))
        is_full = self._budget.progress >= self._until
        self._loader.rows = self._last if is_full else min(multiple * self._first, self._last)
