"""Rolling checkpoints: written by wall time, verified before use, with a fallback to the one before; signals."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from composer.utils.checkpoint import save_checkpoint

from cram_composer.budget.budget import Budget
from cram_composer.budget.ledger import Ledger
from cram_composer.data.stream import TrainLoader
from cram_composer.errors import CramError
from cram_composer.files import read_json, write_json
from cram_composer.record import RunFolder

_SAVING = ".saving-"


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint whose file is whole: size and hash are those written beside it."""

    path: Path
    step: int


class RollingCheckpoints(Callback):
    """Save every `interval` seconds of budget and keep the newest `keep`.

    A checkpoint is a `.pt` file and a `.json` beside it with its size and SHA-256, each written under a temporary name
    and renamed, the `.json` last: a file without one is an interrupted save.
    """

    def __init__(self, folder: RunFolder, budget: Budget, ledger: Ledger, *, interval: float, keep: int) -> None:
        self._folder = folder
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
        due = elapsed - self._last_at >= self._interval
        fits = limit is None or elapsed + 2.0 * self._last_seconds < limit
        if due and fits:
            self.save(state)

    def save(self, state: State) -> None:
        """Save now; counted as checkpoint time while the clock runs. Collective: call it on all ranks."""
        with self._ledger.during("checkpoint"):
            before = self._ledger.elapsed()
            self._write(state)
            # The slowest rank's figure would be fairer, but only rank 0 writes, and this one decides on all ranks.
            seconds = torch.tensor([self._ledger.elapsed() - before], dtype=torch.float64)
            seconds = state.device.tensor_to_device(seconds)
            dist.broadcast(seconds, src=0)
            self._last_seconds = float(seconds)
        self._last_at = self._budget.elapsed
        if dist.get_global_rank() == 0:
            self._folder.write_clock(self._ledger, int(state.timestamp.batch), clean=True)

    def _write(self, state: State) -> None:
        step = int(state.timestamp.batch)
        directory = self._folder.checkpoints
        directory.mkdir(parents=True, exist_ok=True)
        final = directory / f"step-{step:08d}.pt"
        temporary = directory / f"{_SAVING}{final.name}"  # Composer wants the suffix
        save_checkpoint(state, str(temporary))
        if dist.get_global_rank() == 0:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
                digest = _sha256(file)
            os.replace(temporary, final)
            write_json(final.with_suffix(".json"), {"step": step, "bytes": final.stat().st_size, "sha256": digest})
            # A newer step than this one is a damaged checkpoint that this run passed over when it resumed.
            whole = [path for path in _checkpoint_files(directory) if path.name <= final.name]
            for old in set(_checkpoint_files(directory)) - set(whole[: self._keep]):
                old.with_suffix(".json").unlink(missing_ok=True)
                old.unlink(missing_ok=True)


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _checkpoint_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("step-*.pt"), reverse=True)


def newest_checkpoint(directory: Path) -> SavedCheckpoint | None:
    """The newest checkpoint that is whole; a warning for each newer one that is not. None when there is none."""
    for path in _checkpoint_files(directory):
        problem = _problem(path)
        if problem is None:
            return SavedCheckpoint(path, int(read_json(path.with_suffix(".json"))["step"]))
        warnings.warn(f"{path}: {problem}; using the checkpoint before it", stacklevel=2)
    return None


def _problem(path: Path) -> str | None:
    try:
        expected = read_json(path.with_suffix(".json"))
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"truncated ({size} of {expected['bytes']} bytes)"
        with open(path, "rb") as file:
            return (
                None if _sha256(file) == expected["sha256"] else "corrupt (its hash is not the one written beside it)"
            )
    except FileNotFoundError:
        return "an interrupted save (no .json beside it)"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"unreadable ({error})"


def load_state(path: Path) -> dict[str, Any]:
    """The state dict of a checkpoint of ours, on the CPU."""
    # Composer's checkpoints hold its own time objects; this file was written by this project in this run folder.
    return torch.load(path, map_location="cpu", weights_only=False)["state"]


def restore_weights(state: State, logger: Logger, directory: Path) -> dict[str, Any] | None:
    """Put the newest checkpoint's weights, optimizer and algorithms into a running `state`; the data goes on.

    Collective. Returns the checkpoint's state, None when there is no checkpoint.
    """
    saved = newest_checkpoint(directory)
    if saved is None:
        return None
    loaded = load_state(saved.path)
    state.load_model_state({"model": loaded["model"]}, logger, strict=True)
    state.load_optim_state(loaded)
    states = dict(loaded["algorithms"])
    for algorithm in state.algorithms:
        if type(algorithm).__qualname__ in states:
            algorithm.load_state_dict(states[type(algorithm).__qualname__])
    return loaded


class DataPosition(Callback):
    """Every rank's place in the data, in the checkpoint that rank 0 writes."""

    def __init__(self, loader: TrainLoader) -> None:
        self._loader = loader

    def state_dict(self) -> dict[str, Any]:
        """All ranks' places. Collective."""
        return {"ranks": dist.all_gather_object(self._loader.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to this rank's place."""
        if len(state["ranks"]) != dist.get_world_size():
            raise CramError(
                f"the checkpoint is of {len(state['ranks'])} device(s) and this start has {dist.get_world_size()}; "
                "resume on the same number"
            )
        self._loader.load_state_dict(state["ranks"][dist.get_global_rank()])


class Signals:
    """SIGTERM and SIGINT end the run between two steps, with a checkpoint; a step over 25 s is abandoned."""

    def __init__(self, at_once: Callable[[], None]) -> None:
        self._at_once = at_once
        self._before: dict[int, Any] = {}
        self._timer: threading.Timer | None = None
        self.received = 0

    def install(self) -> None:
        """Take over both signals, from Composer's handlers too."""
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}

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
