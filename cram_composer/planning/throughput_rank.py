"""One rank of a run of `cram throughput`: python -m cram_composer.planning.throughput_rank SETTINGS.json

The run is built like any other. It trains warm-up steps, timed steps, and then steps that alternate between syncing
gradients and not. The difference between the latter is the cost of communication. It excludes communication hidden
behind the backward pass, and waiting for slower ranks, since ranks agree on the clock after every step of either kind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch.nn.parallel import DistributedDataParallel

from cram_composer.config import Composed, compose
from cram_composer.config.schema.run import (
    BudgetConfig,
    CheckpointConfig,
    EvalConfig,
    LoggingConfig,
    RunConfig,
)
from cram_composer.config.validation.run import check_run
from cram_composer.device import choose_device
from cram_composer.errors import CramError
from cram_composer.jobs.processes import end_with_parent
from cram_composer.runs.folder import RunFolder
from cram_composer.storage.files import read_json, write_json

WARM_UP = 3  # steps: the first compiles, the next may find cold caches
MEASURED = "throughput.json"


def steady_config(config: RunConfig, size: int, smallest: int, weak: bool, steps: int) -> RunConfig:
    """Return the configuration of a run on `size` devices with identical steps and nothing else to do.

    With `weak`, the batch of the configuration is scaled by `size` / `smallest`. Raises ConfigError if it is not a
    whole number of microbatches.
    """
    algorithms = config.algorithms.model_copy(
        update={"batch_size_ramp": None, "seq_length_warmup": None, "layer_freezing": None}
    )
    batch = config.train.batch_size * size // smallest if weak else config.train.batch_size
    changed = config.model_copy(
        update={
            "runs_remote": None,
            "budget": BudgetConfig(steps=WARM_UP + 2 * steps),
            "train": config.train.model_copy(update={"batch_size": batch, "early_stop": None}),
            "algorithms": algorithms,
            "eval": EvalConfig(interval=0.0, rows=size, final_rows=size, batch_size=1),
            "checkpoint": CheckpointConfig(interval="365d"),
            "logging": LoggingConfig(progress_bar=False, tensorboard=False),
        }
    )
    check_run(changed, size)
    return changed


class StepTimes(Callback):
    """Time every step and its wait for data on this rank; some steps skip gradient synchronization."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._started: float | None = None
        self._asked = 0.0
        self._silent: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        self.seconds: list[float] = []  # from the start of a step to that of the next
        self.data: list[float] = []

    def skips_synchronization(self, step: int) -> bool:
        """Return True for every second one of the last steps."""
        return step >= WARM_UP + self._steps and (step - WARM_UP - self._steps) % 2 == 1

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """End the previous step; the device has finished it, because ranks have agreed on the time since."""
        now = time.perf_counter()
        if self._started is not None:
            self.seconds.append(now - self._started)
        self._started = self._asked = now

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """Record the wait for data."""
        self.data.append(time.perf_counter() - self._asked)
        if self.skips_synchronization(int(state.timestamp.batch)) and isinstance(state.model, DistributedDataParallel):
            self._silent = state.model.no_sync()
            self._silent.__enter__()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Restore synchronization."""
        self._silent.__exit__(None, None, None)
        self._silent = contextlib.nullcontext()

    def fit_end(self, state: State, logger: Logger) -> None:
        """End the last step."""
        assert self._started is not None
        self.seconds.append(time.perf_counter() - self._started)

    def summary(self) -> dict[str, float]:
        """Return the medians of the timed steps in seconds; `communication` is the time added by synchronization."""
        first, last = WARM_UP, WARM_UP + self._steps
        with_it = statistics.median(self.seconds[last::2])
        without = statistics.median(self.seconds[last + 1 :: 2])
        return {
            "step": statistics.median(self.seconds[first:last]),
            "data": statistics.median(self.data[first:last]),
            "communication": with_it - without,
        }


def main(settings: dict[str, Any]) -> int:
    """Train, and write the measurements into the run folder."""
    from cram_composer.train.build import build

    composed: Composed = compose(RunConfig, settings["yaml"], settings["overrides"])
    size, steps = int(os.environ["WORLD_SIZE"]), settings["steps"]
    config = steady_config(composed.config, size, settings["smallest"], settings["weak"], steps)
    device = choose_device(config, int(os.environ["LOCAL_WORLD_SIZE"]))
    folder = RunFolder(Path(settings["folder"]))
    session = build(dataclasses.replace(composed, config=config), device, folder, None)
    times = StepTimes(steps)
    session.trainer.state.callbacks.append(times)
    try:
        session.trainer.fit()
    finally:
        session.callbacks.stop_clocks()
    if session.callbacks.clock.signal:
        return 128 + session.callbacks.clock.signal
    ranks = dist.all_gather_object(times.summary())
    measurable = isinstance(session.trainer.state.model, DistributedDataParallel)
    tokens = config.train.batch_size * session.data.manifest["sequence_length"]
    if dist.get_global_rank() == 0:
        found = {name: statistics.fmean(rank[name] for rank in ranks) for name in ranks[0]}
        if size == 1:
            found["communication"] = 0.0
        measured: dict[str, Any] = {
            "step_seconds": found["step"],
            "data_seconds": found["data"],
            "communication_seconds": max(0.0, found["communication"]) if size == 1 or measurable else None,
            "tokens_per_step": tokens,
            "threads": device.threads,
            "device": device.name,
        }
        write_json(folder.path / MEASURED, measured)
    session.trainer.close()
    return 0


if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ:
        end_with_parent(signal.SIGTERM)
    try:
        sys.exit(main(read_json(Path(sys.argv[1]))))
    except CramError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
