"""Sequence-length warmup: short rows first, growing to full length with budget progress."""

from __future__ import annotations

from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from cram_composer.budget.budget import Budget
from cram_composer.budget.schedules import ramp
from cram_composer.config.schema.algorithms import SeqLengthWarmupConfig
from cram_composer.data.loading.stream import TrainLoader
from cram_composer.errors import ConfigError


class SeqLengthWarmup(Algorithm):
    """Sequence-length warmup (Li et al. 2021, arXiv 2108.06084), with Composer's parameter names.

    `duration` is a share of the budget. The length is set before masking, so rows of every length have the full share
    of masked tokens, and only tokens fed to the model are counted. Truncated rows have multiples of `step_size` tokens.
    Reshaped rows have a divisor of the data's row length, so that no token is dropped.
    """

    def __init__(self, config: SeqLengthWarmupConfig, budget: Budget, loader: TrainLoader) -> None:
        full = loader.data_seq_length
        if config.min_seq_length > full:
            raise ConfigError(
                f"algorithms.seq_length_warmup.min_seq_length: must be <= {full}, the tokens of a data row, got "
                f"{config.min_seq_length}"
            )
        if config.truncate:
            lengths = {*range(config.min_seq_length, full + 1, config.step_size), full}
        else:
            lengths = {n for n in range(config.min_seq_length, full + 1) if full % n == 0}
        self._lengths = sorted(lengths)
        self._config = config
        self._budget = budget
        self._loader = loader
        loader.truncate = config.truncate

    def match(self, event: Event, state: State) -> bool:
        """Match before every batch is fetched."""
        return event == Event.BEFORE_DATALOADER

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Set the row length of the next batch to the longest allowed one below the linear ramp."""
        target = ramp(self._budget.progress, self._lengths[0], self._lengths[-1], self._config.duration)
        self._loader.seq_length = max(n for n in self._lengths if n <= target + 1e-9)
