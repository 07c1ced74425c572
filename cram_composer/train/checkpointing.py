"""Rolling checkpoints: written by wall time, verified before use, with a fallback to the one before; signals."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from cram_composer.budget.budget import Budget
from cram_composer.budget.ledger import Ledger
from cram_composer.data.loading.stream import TrainLoader
from cram_composer.runs.branch_points import BranchPointSaver
from cram_composer.runs.checkpoints import checkpoint_files, newest_checkpoint, sha256
from cram_composer.runs.folder import RunFolder
from cram_composer.scaleout.strategy import Strategy
from cram_composer.storage.files import write_json

_SAVING = ".saving-"


class RollingCheckpoints(Callback):
    """Save every `interval` seconds of budget and keep the newest `keep`.

    A checkpoint is a `.pt` file and a `.json` beside it with its size and SHA-256, each written under a temporary name
    and renamed, the `.json` last: a file without one is an interrupted save.
    """

    def __init__(
        self,
        folder: RunFolder,
        budget: Budget,
        ledger: Ledger,
        *,
        interval: float,
        keep: int,
        strategy: Strategy,
        branch_points: BranchPointSaver,
        saved: Callable[[Path], None] | None = None,
    ) -> None:
        self._folder = folder
        self._strategy = strategy
        self._branch_points = branch_points
        self._saved = saved  # called on rank 0 with every checkpoint
        self._budget = budget
        self._ledger = ledger
        self._interval = interval
        self._keep = keep
        self._last_at: float | None = None
        self._last_seconds = 0.0

    def fit_start(self, state: State, logger: Logger) -> None:
        """Remove what a kill left of an unfinished save."""
        if dist.get_global_rank() == 0:
            for unfinished in self._folder.checkpoints.glob(f"{_SAVING}*"):
                unfinished.unlink(missing_ok=True)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save when it is time and there is time."""
        # budget.elapsed is the reading that all ranks agreed on, so that they all save after the same step.
        elapsed, limit = self._budget.elapsed, self._budget.limits.seconds
        if self._last_at is None:
            self._last_at = elapsed
        due = elapsed - self._last_at >= self._interval or self._branch_points.is_due(self._budget.progress)
        fits = limit is None or elapsed + 2.0 * self._last_seconds < limit
        if due and fits:
            self.save(state)

    def save(self, state: State) -> None:
        """Save now; counted as checkpoint time while the clock runs. Collective: call it on all ranks."""
        spent = self._ledger.elapsed()  # what the checkpoint says too
        with self._ledger.during("checkpoint"):
            self._write(state)
            # The slowest rank's figure would be fairer, but only rank 0 writes, and this one decides on all ranks.
            seconds = torch.tensor([self._ledger.elapsed() - spent], dtype=torch.float64)
            seconds = state.device.tensor_to_device(seconds)
            dist.broadcast(seconds, src=0)
            self._last_seconds = float(seconds)
        self._last_at = self._budget.elapsed
        progress = self._budget.progress
        if self._branch_points.is_due(progress) and dist.get_global_rank() == 0:
            self._branch_points.save(self._path(state), progress, spent, int(state.timestamp.token))
        self._branch_points.drop_passed(progress)
        if dist.get_global_rank() == 0:
            self._folder.write_clock(self._ledger, int(state.timestamp.batch), clean=True)
            if self._saved is not None:
                self._saved(self._path(state))

    def _path(self, state: State) -> Path:
        return self._folder.checkpoints / f"step-{int(state.timestamp.batch):08d}.pt"

    def _write(self, state: State) -> None:
        step = int(state.timestamp.batch)
        final = self._path(state)
        directory = final.parent
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / f"{_SAVING}{final.name}"  # Composer wants the suffix
        self._strategy.save(state, temporary)
        if dist.get_global_rank() == 0:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
                digest = sha256(file)
            os.replace(temporary, final)
            write_json(final.with_suffix(".json"), {"step": step, "bytes": final.stat().st_size, "sha256": digest})
            # A newer step than this one is a damaged checkpoint that this run passed over when it resumed.
            whole = [path for path in checkpoint_files(directory) if path.name <= final.name]
            for old in set(checkpoint_files(directory)) - set(whole[: self._keep]):
                old.with_suffix(".json").unlink(missing_ok=True)
                old.unlink(missing_ok=True)


def load_state(path: Path) -> dict[str, Any]:
    """The state dict of a checkpoint of ours, on the CPU."""
    # Composer's checkpoints hold its own time objects; this file was written by this project in this run folder.
    return torch.load(path, map_location="cpu", weights_only=False)["state"]


def restore_weights(state: State, logger: Logger, directory: Path, strategy: Strategy) -> dict[str, Any] | None:
    """Put the newest checkpoint's weights, optimizer and algorithms into a running `state`; the data goes on.

    Collective. Returns the checkpoint's state, None when there is no checkpoint.
    """
    saved = newest_checkpoint(directory)
    if saved is None:
        return None
    loaded = load_state(saved.path)
    strategy.restore(state, loaded, logger)
    states = dict(loaded["algorithms"])
    for algorithm in state.algorithms:
        if type(algorithm).__qualname__ in states:
            algorithm.load_state_dict(states[type(algorithm).__qualname__])
    return loaded


class DataPosition(Callback):
    """The run's place in the data: one for all ranks, and good for any number of them."""

    def __init__(self, loader: TrainLoader) -> None:
        self._loader = loader

    def state_dict(self) -> dict[str, Any]:
        """The place."""
        return self._loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the place."""
        self._loader.load_state_dict(state)


class Signals:
    """What ends the run between two steps, with a checkpoint; a step over 25 s is abandoned.

    SIGTERM, SIGINT, and SIGUSR2, which submitit has Slurm send 90 s before the end of a job's time.
    """

    def __init__(self, at_once: Callable[[], None]) -> None:
        self._at_once = at_once
        self._before: dict[int, Any] = {}
        self._timer: threading.Timer | None = None
        self.received = 0

    def install(self) -> None:
        """Take them over, from Composer's handlers too."""
        ends = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
        self._before = {number: signal.signal(number, self._handle) for number in ends}

    def uninstall(self) -> None:
        """The loop is over: nothing is left to save, and a signal ends the process as it did before."""
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            # Ctrl-C reaches a process twice: from the terminal, and as the launcher's SIGTERM right after.
            return
        self.received = number
        print(f"\n{signal.Signals(number).name}: saving after this step", file=sys.stderr, flush=True)
        self._timer = threading.Timer(25.0, self._give_up)
        self._timer.daemon = True
        self._timer.start()

    def _give_up(self) -> None:
        print("the step was not over and saved within 25 s: the last checkpoint stands", file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):
            self._at_once()
        os._exit(128 + self.received)
