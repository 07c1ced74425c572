"""Loggers of a run: metrics.jsonl, the progress bar, TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from composer.core import State
from composer.loggers import Logger, LoggerDestination, ProgressBarLogger, TensorboardLogger
from composer.utils import dist

from cram_composer.budget.budget import Budget
from cram_composer.budget.trace import JsonLines
from cram_composer.config.schema.run import LoggingConfig
from cram_composer.config.units import format_duration
from cram_composer.errors import CramError
from cram_composer.runs.folder import METRICS, RunFolder

_SECONDS_PER_STEP = 1.0  # between steps in TensorBoard; the trace has every step
_SECONDS_PER_LINE = 30.0  # between progress lines without a terminal
_SECONDS_PER_UPDATE = 1.0  # between updates of the progress bar in a terminal


def build_loggers(config: LoggingConfig, folder: RunFolder, budget: Budget) -> list[LoggerDestination]:
    """Build metrics.jsonl on rank 0 and the configured loggers.

    Raises:
        CramError: a package is missing, or a logger rejects its arguments.
    """
    loggers: list[LoggerDestination] = []
    if dist.get_global_rank() == 0:
        loggers.append(MetricsFile(folder, budget))
        if config.progress_bar:
            loggers.append(BudgetProgressBar(budget))
        if config.tensorboard:
            loggers.append(PacedTensorboard(str(folder.path / "tensorboard")))
    # On every rank, because these exchange their run id among ranks; they log on rank 0 only.
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
    except (TypeError, ImportError) as error:  # of an argument, or of a package that only some arguments need
        raise CramError(f"logging.{name}: {' '.join(str(error).split())}") from None


class MetricsFile(LoggerDestination):
    """Write evaluation results to metrics.jsonl; per-step values are in the trace."""

    def __init__(self, folder: RunFolder, budget: Budget) -> None:
        self._file = JsonLines(folder.path / METRICS)
        self._budget = budget
        self._state: State | None = None

    def fit_start(self, state: State, logger: Logger) -> None:
        """Drop lines that an earlier attempt wrote after its last checkpoint."""
        self._state = state
        self._file.cut(int(state.timestamp.batch))

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Write the metrics of an evaluation."""
        found = {
            name.removeprefix("metrics/"): float(value)
            for name, value in metrics.items()
            if name.startswith("metrics/")
        }
        if found and self._state is not None:
            timestamp = self._state.timestamp
            where = {
                "step": max(0, int(timestamp.batch) - 1),
                "elapsed": self._budget.elapsed,
                "tokens": int(timestamp.token),
            }
            self._file.append(where | found)

    def post_close(self) -> None:
        """Close the file."""
        self._file.close()


class PacedTensorboard(TensorboardLogger):
    """TensorBoard with every evaluation and at most one step per second.

    A step logs about twenty scalars, which would slow down short steps.

    Args:
        log_dir: folder of the event files.
    """

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir=log_dir, rank_zero_only=True)
        self._step: int | None = None
        self._writes = False
        self._next = 0.0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write all metrics of a step or none."""
        if step != self._step:
            now = time.monotonic()
            self._step, self._writes = step, now >= self._next
            if self._writes:
                self._next = now + _SECONDS_PER_STEP
        if self._writes or any(name.startswith("metrics/") for name in metrics):
            super().log_metrics(metrics, step)


class BudgetProgressBar(ProgressBarLogger):
    """Show budget left, loss, tokens/s, learning rate and data stall; without a terminal, one line every 30 s.

    tokens/s is the mean since the previous update of the bar, or since the previous line. Evaluations, checkpoints and
    compilation in between count.
    """

    def __init__(self, budget: Budget, stream: TextIO = sys.stderr) -> None:
        super().__init__(stream=stream)
        self._budget = budget
        self._terminal = os.isatty(stream.fileno())
        self._seconds_between = _SECONDS_PER_UPDATE if self._terminal else _SECONDS_PER_LINE
        self._shown_at = time.monotonic()
        self._shown_tokens = 0
        self._latest: dict[str, float] = {}

    def init(self, state: State, logger: Logger) -> None:
        """Reserve a line for the bar if there is a terminal."""
        if self._terminal:
            super().init(state, logger)
        else:
            self.state = state

    def _log_hparams_to_console(self) -> None:
        # The run folder holds the configuration.
        self.hparams_already_logged_to_console = True

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Remember the latest values."""
        self._latest.update({name: value for name, value in metrics.items() if isinstance(value, (int, float))})

    def epoch_start(self, state: State, logger: Logger) -> None:
        """Do nothing, because a resumed run is in the middle of its only epoch."""

    def fit_start(self, state: State, logger: Logger) -> None:
        """Open the bar, in percent of the budget."""
        self._shown_at, self._shown_tokens = time.monotonic(), int(state.timestamp.token)
        if self.show_pbar and self._terminal and self.train_pbar is None:
            self.train_pbar = self._build_pbar(state, is_train=True)
            self.train_pbar.pbar.bar_format = "cram {percentage:3.0f}%|{bar:20}| {postfix}"
            self.train_pbar.pbar.total = 1.0

    def batch_end(self, state: State, logger: Logger) -> None:
        """Update the bar or print a line, if one is due."""
        now, tokens = time.monotonic(), int(state.timestamp.token)
        seconds = now - self._shown_at
        if not self.show_pbar or seconds < self._seconds_between:
            return
        summary = self._summary(state, (tokens - self._shown_tokens) / seconds)
        self._shown_at, self._shown_tokens = now, tokens
        if self.train_pbar is not None:
            self.train_pbar.pbar.n = self._budget.progress
            self.train_pbar.pbar.set_postfix_str(summary)
        else:
            print(f"cram {100 * self._budget.progress:3.0f}% {summary}", file=self.stream, flush=True)

    def eval_start(self, state: State, logger: Logger) -> None:
        """Do nothing, because evaluations are short and `eval_end` shows their result."""

    def eval_end(self, state: State, logger: Logger) -> None:
        """Show the held-out loss."""
        label = state.dataloader_label or ""
        metrics = state.eval_metrics.get(label, {})
        if self.show_pbar and "loss" in metrics:
            loss, accuracy = float(metrics["loss"].compute()), float(metrics["accuracy"].compute())
            name = label.partition("-")[2]  # of a further held-out set
            self._log_to_console(
                f"step {int(state.timestamp.batch)}: {f'{name}, ' if name else ''}held-out loss {loss:.3f} nats, "
                f"accuracy {100 * accuracy:.1f} %"
            )

    def _summary(self, state: State, tokens_per_second: float) -> str:
        latest = self._latest
        left = f"step {int(state.timestamp.batch)}"
        if self._budget.limits.seconds is not None:
            left += f", {format_duration(max(0.0, self._budget.limits.seconds - self._budget.elapsed))} left"
        return (
            f"{left}, loss {latest.get('loss/train/total', float('nan')):.3f}, {_detection(latest)}"
            f"{tokens_per_second:,.0f} tokens/s, lr {latest.get('lr', 0.0):.2e}, "
            f"stall {100 * latest.get('throughput/stall', 0.0):.1f} %"
        )


def _detection(latest: dict[str, float]) -> str:
    """Describe the last step of replaced-token detection; empty for masked-language modelling."""
    if "loss/train/detector" not in latest:
        return ""
    return (
        f"generator {latest['loss/train/generator']:.3f}, detector {latest['loss/train/detector']:.4f}, "
        f"{100 * latest['loss/train/detected']:.0f} % detected, "
    )
