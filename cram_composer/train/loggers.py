"""The loggers that a run's configuration asks for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from composer.loggers import LoggerDestination, TensorboardLogger
from composer.utils import dist

from cram_composer.budget.budget import Budget
from cram_composer.config.schema.run import LoggingConfig
from cram_composer.errors import CramError
from cram_composer.runs.folder import RunFolder
from cram_composer.train.callbacks import MetricsFile
from cram_composer.train.progress_bar import BudgetProgressBar

_A_STEP_EVERY = 1.0  # second; the trace has every step


class PacedTensorboard(TensorboardLogger):
    """TensorBoard with every evaluation, and one step in a second: some twenty scalars a step would cost short steps.

    Args:
        log_dir: the folder of the event files.
    """

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir=log_dir, rank_zero_only=True)
        self._step: int | None = None
        self._writes = False
        self._next = 0.0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write all that a step logs, or nothing of it."""
        if step != self._step:
            now = time.monotonic()
            self._step, self._writes = step, now >= self._next
            if self._writes:
                self._next = now + _A_STEP_EVERY
        if self._writes or any(name.startswith("metrics/") for name in metrics):
            super().log_metrics(metrics, step)


def build_loggers(config: LoggingConfig, folder: RunFolder, budget: Budget) -> list[LoggerDestination]:
    """metrics.jsonl always, on rank 0; the rest as configured. Raises CramError for what a logger does not take."""
    loggers: list[LoggerDestination] = []
    if dist.get_global_rank() == 0:
        loggers.append(MetricsFile(folder, budget))
        if config.progress_bar:
            loggers.append(BudgetProgressBar(budget))
        if config.tensorboard:
            loggers.append(PacedTensorboard(str(folder.path / "tensorboard")))
    # These two exchange their run's id among the ranks, and log on rank 0 only by themselves.
    if config.wandb is not None:
        from composer.loggers import WandBLogger

        loggers.append(_optional("wandb", WandBLogger, config.wandb))
    if config.mlflow is not None:
        from composer.loggers import MLFlowLogger

        loggers.append(_optional("mlflow", MLFlowLogger, config.mlflow))
    return loggers


def _optional(name: str, logger: Callable[..., LoggerDestination], arguments: dict[str, Any]) -> LoggerDestination:
    try:
        return logger(**arguments)
    except TypeError as error:
        raise CramError(f"logging.{name}: {error}") from None
    except ImportError:
        raise CramError(f"logging.{name}: the package is not installed; pip install 'cram-composer[{name}]'") from None
