"""The loggers that a run's configuration asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from composer.loggers import LoggerDestination
from composer.utils import dist

from cram_composer.budget.budget import Budget
from cram_composer.config.schema import LoggingConfig
from cram_composer.console import BudgetProgressBar
from cram_composer.errors import CramError
from cram_composer.record import RunFolder
from cram_composer.recording import MetricsFile


def build_loggers(config: LoggingConfig, folder: RunFolder, budget: Budget) -> list[LoggerDestination]:
    """metrics.jsonl always, on rank 0; the rest as configured. Raises CramError for what a logger does not take."""
    loggers: list[LoggerDestination] = []
    if dist.get_global_rank() == 0:
        loggers.append(MetricsFile(folder, budget))
        if config.progress_bar:
            loggers.append(BudgetProgressBar(budget))
        if config.tensorboard:
            from composer.loggers import TensorboardLogger

            loggers.append(TensorboardLogger(log_dir=str(folder.path / "tensorboard"), rank_zero_only=True))
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
