"""Checkpoints that a thread completes while training continues."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from composer.core import Timestamp
from composer.devices import DeviceCPU

from cram_composer.budget.ledger import Ledger
from cram_composer.runs.branch_points import BranchPointSaver, list_branch_points
from cram_composer.runs.checkpoints import newest_checkpoint, sha256
from cram_composer.runs.folder import RunFolder
from cram_composer.storage.files import DiskFullError
from cram_composer.train import checkpointing
from cram_composer.train.checkpointing import RollingCheckpoints, restore_weights


class Saves:
    """A strategy whose checkpoints hold the step."""

    restored = -1

    def checkpoint(self, state: Any) -> dict[str, Any]:
        return {"state": {"step": int(state.timestamp.batch), "algorithms": []}}

    def restore(self, state: Any, loaded: dict[str, Any], logger: Any) -> None:
        self.restored = loaded["step"]


class Run:
    """A loop that saves after every step, and whose hashing waits for `go`."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, branch_at: list[float]) -> None:
        self.folder = RunFolder(path)
        self.strategy = Saves()
        self.budget = SimpleNamespace(elapsed=0.0, progress=0.0, limits=SimpleNamespace(seconds=None))
        self.saved: list[str] = []
        self.checkpoints = RollingCheckpoints(
            self.folder,
            cast(Any, self.budget),
            Ledger(),
            interval=1.0,
            keep=2,
            strategy=cast(Any, self.strategy),
            branch_points=BranchPointSaver(path, branch_at),
            on_saved=lambda path: self.saved.append(path.name),
        )
        self.state: Any = SimpleNamespace(
            timestamp=Timestamp(), device=DeviceCPU(), callbacks=[self.checkpoints], algorithms=[]
        )
        self.go, self.error = threading.Event(), cast(OSError | None, None)
        self.go.set()
        monkeypatch.setattr(checkpointing, "sha256", self._hash)
        self.step()  # the first step starts the interval

    def _hash(self, file: Any) -> str:
        self.go.wait(20)
        if self.error is not None:
            raise self.error
        return sha256(file)

    def step(self) -> None:
        """Take a step."""
        self.budget.elapsed += 1.0
        self.budget.progress += 0.1
        self.state.timestamp = self.state.timestamp.to_next_batch()
        self.checkpoints.batch_checkpoint(self.state, cast(Any, None))

    def newest(self) -> int | None:
        """Return the step of the newest complete checkpoint."""
        found = newest_checkpoint(self.folder.checkpoints, quiet=True)
        return None if found is None else found.step


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    made = Run(tmp_path, monkeypatch, branch_at=[0.25])
    yield made
    made.go.set()


def test_training_continues_while_a_checkpoint_is_completed(run: Run) -> None:
    run.step()
    run.checkpoints.wait()
    assert run.newest() == 2
    run.go.clear()
    run.step()
    assert run.newest() == 2 and run.saved == ["step-00000002.pt"] and list_branch_points(run.folder.path) == []
    clock = run.folder.read_clock()
    assert clock is not None and (clock["step"], clock["clean"]) == (3, False)
    run.go.set()
    run.checkpoints.wait()
    assert run.newest() == 3 and run.saved[1:] == ["step-00000003.pt"]
    (point,) = list_branch_points(run.folder.path)
    assert (point.point, point.step) == (0.25, 3)
    assert run.checkpoints.full_seconds >= run.checkpoints.last_seconds >= 0.0


def test_only_the_newest_are_kept(run: Run) -> None:
    for _ in range(4):
        run.step()
    run.checkpoints.wait()
    assert sorted(path.name for path in run.folder.checkpoints.glob("*.pt")) == ["step-00000004.pt", "step-00000005.pt"]


def test_a_save_on_request_is_complete_when_it_returns(run: Run) -> None:
    run.go.clear()
    threading.Timer(0.1, run.go.set).start()
    run.checkpoints.save(run.state)
    assert run.newest() == 1
    clock = run.folder.read_clock()
    assert clock is not None and (clock["step"], clock["clean"]) == (1, True)


@pytest.mark.parametrize("later", ["due", "not-due", "save"])
def test_a_failure_ends_the_run_at_the_next_step_or_save(run: Run, later: str) -> None:
    run.step()
    run.checkpoints.wait()
    run.error = OSError(errno.ENOSPC, "No space left on device")
    run.step()
    with pytest.raises(DiskFullError, match="step-00000003.pt: the disk is full"):
        if later == "save":
            run.checkpoints.save(run.state)
        elif later == "due":
            run.step()
        else:
            for thread in threading.enumerate():
                if thread.name == "checkpoint":
                    thread.join()
            run.checkpoints.batch_checkpoint(run.state, cast(Any, None))
    assert run.newest() == 2
    assert sorted(path.name for path in run.folder.checkpoints.iterdir()) == ["step-00000002.json", "step-00000002.pt"]


def test_a_rollback_waits_for_the_checkpoint_in_progress(run: Run) -> None:
    run.go.clear()
    run.step()
    threading.Timer(0.1, run.go.set).start()
    restore_weights(run.state, cast(Any, None), run.folder.checkpoints, cast(Any, run.strategy))
    assert run.strategy.restored == 2
