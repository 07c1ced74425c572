"""Rolling checkpoints, saved by wall-clock time, and their restoration on resume or rollback."""

from __future__ import annotations

import datetime
import os
import pickle
import pydoc
import re
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from numpy._core.multiarray import _reconstruct
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals
from torch.torch_version import TorchVersion

from cram_composer.budget.budget import Budget
from cram_composer.budget.ledger import Ledger
from cram_composer.config.units import format_duration
from cram_composer.data.loading.stream import TrainLoader
from cram_composer.errors import CramError
from cram_composer.runs.branch_points import BranchPointSaver
from cram_composer.runs.checkpoints import (
    SavedCheckpoint,
    checkpoint_files,
    damaged_checkpoints,
    newest_checkpoint,
    sha256,
)
from cram_composer.runs.folder import SAVING, RunFolder
from cram_composer.scaleout.strategy import Strategy
from cram_composer.storage.files import naming_full_disk, write_json
from cram_composer.train.snapshot import snapshot

# Besides tensors, numbers and containers: Composer's times, the state of numpy's generator, torch's version.
_SAFE_GLOBALS: list[Any] = [
    datetime.timedelta,
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
    _reconstruct,
    (_reconstruct, "numpy.core.multiarray._reconstruct"),  # as numpy 1 names it
    TorchVersion,
]
# Plain objects in the optimizer state of Shampoo, whose module takes a second to import.
_OF_SHAMPOO = [
    f"pytorch_optimizer.optimizer.utils.{name}"
    for name in (
        "graft.RMSPropGraft",
        "partition.BlockPartitioner",
        "partition.PreConditionerType",
        "preconditioner.PreConditioner",
    )
]


class RollingCheckpoints(Callback):
    """Save every `interval` seconds of budget and keep the newest `keep` checkpoints.

    A checkpoint is a `.pt` file and a `.json` file with its size and SHA-256. Both are written under a temporary name
    and renamed, the `.json` last, so a `.pt` file without a `.json` is an interrupted save. Training continues when the
    state is copied to host memory; a thread writes the copy.

    Attributes:
        last_seconds: seconds for which the last save held up the loop of rank 0, 0 before the first.
        full_seconds: seconds until the last save of rank 0 was complete.
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
        on_saved: Callable[[Path], None] | None = None,
    ) -> None:
        self._folder = folder
        self._strategy = strategy
        self._branch_points = branch_points
        self._on_saved = on_saved  # called on rank 0 with the path of every checkpoint
        self._budget = budget
        self._ledger = ledger
        self._interval = interval
        self._keep = keep
        self._last_at: float | None = None
        self._completion: _Completion | None = None  # of the last save
        self.last_seconds = 0.0
        self.full_seconds = 0.0

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save if a checkpoint is due and fits into the budget."""
        # All ranks agree on budget.elapsed, so they all save after the same step.
        elapsed, limit = self._budget.elapsed, self._budget.limits.seconds
        if self._last_at is None:
            self._last_at = elapsed
        due = elapsed - self._last_at >= self._interval or self._branch_points.is_due(self._budget.progress)
        fits = limit is None or elapsed + 2.0 * self.last_seconds < limit
        if due and fits:
            self._begin(state)
        elif self._completion is not None and self._completion.failed:
            self.wait()

    def save(self, state: State) -> None:
        """Save now and wait until the checkpoint is complete. Collective."""
        self._begin(state)
        with self._ledger.during("checkpoint"):
            self.wait()
        if dist.get_global_rank() == 0:
            self._folder.write_clock(self._ledger, int(state.timestamp.batch), clean=True)

    def wait(self) -> None:
        """Wait for a save in progress; raise its error."""
        completion, self._completion = self._completion, None
        if completion is not None:
            completion.result()

    def _begin(self, state: State) -> None:
        """Copy the state, which counts as checkpoint time if the clock is running, and let a thread write it."""
        started, before = time.monotonic(), self._ledger.elapsed()
        step = int(state.timestamp.batch)
        final = self._folder.checkpoints / f"step-{step:08d}.pt"
        temporary = final.with_name(f"{SAVING}{final.name}")
        with self._ledger.during("checkpoint"):
            self.wait()
            spent = self._ledger.elapsed()  # as stored in the checkpoint
            contents = self._strategy.checkpoint(state)
            if dist.get_global_rank() == 0:
                contents = snapshot(contents)
            # Rank 0 copies and writes, so all ranks use its time.
            seconds = torch.tensor([self._ledger.elapsed() - before], dtype=torch.float64)
            seconds = state.device.tensor_to_device(seconds)
            dist.broadcast(seconds, src=0)
            self.last_seconds = float(seconds)
        self._last_at = self._budget.elapsed
        progress, tokens = self._budget.progress, int(state.timestamp.token)
        branch_point = self._branch_points.take_due(progress)
        if dist.get_global_rank() != 0:
            return
        self._folder.write_clock(self._ledger, step, clean=False)

        def complete() -> None:
            self._write(contents, temporary, final, step)
            if branch_point is not None:
                self._branch_points.save(final, branch_point, progress, spent, tokens)
            if self._on_saved is not None:
                self._on_saved(final)
            self.full_seconds = time.monotonic() - started

        self._completion = _Completion(complete)

    def _write(self, contents: dict[str, Any], temporary: Path, final: Path, step: int) -> None:
        """Write the contents to the disk, record their hash, and remove older checkpoints."""
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            with naming_full_disk(final), open(temporary, "w+b") as file:
                torch.save(contents, file)
                file.flush()
                os.fsync(file.fileno())
                file.seek(0)
                digest = sha256(file)
        except BaseException:
            temporary.unlink(missing_ok=True)  # the space is needed to record the failure
            raise
        os.replace(temporary, final)
        write_json(final.with_suffix(".json"), {"step": step, "bytes": final.stat().st_size, "sha256": digest})
        # A file with a higher step is a damaged checkpoint that this run skipped when it resumed.
        valid = [path for path in checkpoint_files(final.parent) if path.name <= final.name]
        for old in set(checkpoint_files(final.parent)) - set(valid[: self._keep]):
            old.with_suffix(".json").unlink(missing_ok=True)
            old.unlink(missing_ok=True)


class _Completion:
    """A function that runs in a thread. The process does not exit before it, unless it is killed."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(function,), name="checkpoint")
        self._thread.start()

    def _run(self, function: Callable[[], None]) -> None:
        try:
            function()
        except Exception as error:
            self._error = error

    @property
    def failed(self) -> bool:
        """True if the function has raised an error."""
        return self._error is not None

    def result(self) -> None:
        """Wait for the thread; raise its error."""
        self._thread.join()
        if self._error is not None:
            raise self._error


def find_checkpoint(folder: RunFolder) -> SavedCheckpoint | None:
    """Find the newest valid checkpoint, with one warning for each newer damaged one. Collective.

    Raises:
        CramError: ranks see different checkpoints, or the checkpoints that the run had are all damaged or missing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        saved = newest_checkpoint(folder.checkpoints)
    if len(set(dist.all_gather_object(saved.step if saved else None))) > 1:
        raise CramError(
            f"{folder.checkpoints}: ranks see different checkpoints; set runs_dir to a disk that all nodes share"
        )
    if saved is None:
        _refuse_lost_checkpoints(folder)
    return saved


def _refuse_lost_checkpoints(folder: RunFolder) -> None:
    """Raise CramError if the run had a checkpoint, because it would silently start from step 0."""
    problems, clock = damaged_checkpoints(folder.checkpoints), folder.read_clock()
    if not problems and clock is not None and clock["clean"] and clock["step"] > 0:
        problems = [f"that of step {clock['step']} is missing"]
    if problems:
        lost = "its steps"
        if clock is not None:
            lost = f"{clock['step']} steps and {format_duration(sum(clock['inside'].values()))} of budget"
        raise CramError(
            f"{folder.checkpoints}: no intact checkpoint ({', '.join(problems)}), so {lost} are lost; copy an intact "
            "one there, or add --restart to start from step 0"
        )


@contextmanager
def tensors_only(path: Path | None) -> Iterator[None]:
    """Restrict torch.load to tensors and the plain types of a checkpoint, also where Composer calls it.

    A pickle can run any code, and a checkpoint may come from a bucket that others write to.

    Raises:
        CramError: the checkpoint at `path` holds anything else; nothing of it was executed.
    """
    safe = list(_SAFE_GLOBALS)
    if path is not None:
        if not zipfile.is_zipfile(path):
            raise CramError(f"{path}: not a checkpoint of torch.save (no zip archive); it was not loaded")
        if any(name in _OF_SHAMPOO for name in get_unsafe_globals_in_checkpoint(path)):
            safe += [pydoc.locate(name) for name in _OF_SHAMPOO]
    forced = mock.patch.dict(os.environ, {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"})  # Composer asks for full unpickling
    with forced, safe_globals(safe):
        try:
            yield
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL (\S+)", str(error))
            what = f"names the Python object {found[1]}" if found else "is not a file of tensors"
            raise CramError(
                f"{path}: {what}, which no checkpoint of cram-composer does; it was not loaded, since it could run code"
            ) from None


def load_state(path: Path) -> dict[str, Any]:
    """Load the state dict of a checkpoint of this project on the CPU. Raises CramError if it could run code."""
    with tensors_only(path):
        state: dict[str, Any] = torch.load(path, map_location="cpu")["state"]
    return state


def restore_weights(state: State, logger: Logger, directory: Path, strategy: Strategy) -> dict[str, Any] | None:
    """Restore weights, optimizer and algorithms of a running `state` from the newest checkpoint. Collective.

    The position in the data is kept, so that the same batch is not repeated.

    Returns:
        The checkpoint's state; None if there is no checkpoint.
    """
    for callback in state.callbacks:
        if isinstance(callback, RollingCheckpoints):
            callback.wait()
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
    """Position in the data of the whole run, identical on all ranks and valid for any number of them."""

    def __init__(self, loader: TrainLoader) -> None:
        self._loader = loader

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        return self._loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the position from a checkpoint."""
        self._loader.load_state_dict(state)
