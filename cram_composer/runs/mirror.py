"""Copies of a run in object storage: checkpoints while it trains, everything at the end, and the way back.

Below `runs_remote/RUN_NAME` it looks as in the run folder. A checkpoint's `.json` is written after its `.pt` and after
the trace, record and clock that belong to it, so a checkpoint that has one can be gone on from.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cram_composer.errors import CramError
from cram_composer.runs.branch_points import FOLDER as BRANCH_POINTS
from cram_composer.runs.checkpoints import checkpoint_files, checkpoint_problem, newest_checkpoint
from cram_composer.runs.folder import CLOCK, RECORD, RunFolder, upgrade_record
from cram_composer.storage.client import Storage, StorageError
from cram_composer.storage.files import read_json

_SENDING = ".sending-"
_WITH_EVERY_CHECKPOINT = ("config.yaml", "trace.jsonl", "metrics.jsonl", RECORD, CLOCK)
_PAGE = ("report.html", "figures")  # drawn after all the rest is there


@dataclass(frozen=True)
class _QueuedCheckpoint:
    """A checkpoint to be copied: a second name of its file, whose first may be deleted meanwhile, and its .json."""

    name: str
    file: Path
    description: str


class RunMirror:
    """The copy of one run. Rank 0 alone writes to it, from one thread beside the training loop.

    No process is started: whatever ends the run ends the copying.
    """

    def __init__(self, folder: RunFolder, runs_remote: str, keep: int) -> None:
        self._folder = folder
        self._storage: Storage = Storage(f"{runs_remote.rstrip('/')}/{folder.path.name}")
        self._keep = keep
        self._next: _QueuedCheckpoint | None = None
        self._busy = False
        self._problem: Exception | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._tokenizer_sent = False
        self._sent: str | None = None  # .json of the checkpoint that was copied last

    @property
    def uri(self) -> str:
        """Where the copy is."""
        return self._storage.uri

    def check(self) -> None:
        """Make sure that it can be written to. Raises StorageError."""
        self._storage.check_access(write=True)

    # --- going back ---

    def read_record(self) -> dict[str, Any] | None:
        """The record of the copy, None if there is none. Raises CramError."""
        with tempfile.TemporaryDirectory() as scratch:
            try:
                self._storage.download(RECORD, Path(scratch) / RECORD)
            except StorageError as error:
                if error.cause == "missing":
                    return None
                raise
            return upgrade_record(read_json(Path(scratch) / RECORD))

    def restore(self) -> None:
        """Bring the copy's newest whole checkpoint here, with all it needs, if it is ahead of what is here.

        The record comes last: without it the next start begins again. Raises CramError.
        """
        here = newest_checkpoint(self._folder.checkpoints, quiet=True)
        sizes = self._storage.list_sizes()
        names = [name for name in sizes if name.startswith("checkpoints/")]
        whole = sorted(n for n in names if n.endswith(".pt") and _json(n) in sizes)
        ahead = [n for n in whole if here is None or _step(n) > here.step]
        has_record = (self._folder.path / RECORD).is_file()
        if RECORD not in sizes or (has_record and not ahead):
            return
        print(f"{self._folder.path}: going on from the copy in {self.uri}", flush=True)
        for name in reversed(ahead):
            if self._fetch_checkpoint(name):
                break
        else:
            if has_record:
                return  # none of them is any good
        kept = self._spent(self._folder.path / CLOCK)
        for name in sorted(sizes, key=lambda name: name == RECORD):
            if name in _WITH_EVERY_CHECKPOINT or name.startswith("tokenizer/"):
                if name == CLOCK and kept > 0 and kept >= self._remote_spent():
                    continue  # what was spent here after that copy is lost, and counts
                self._storage.download(name, self._folder.path / name)

    def _fetch_checkpoint(self, name: str) -> bool:
        path = self._folder.path / name
        try:
            # By another name until its hash is known to be right: a file that is here may be the better one.
            unchecked = path.with_name(f".fetched-{path.name}")
            self._storage.download(name, unchecked)
            self._storage.download(_json(name), unchecked.with_suffix(".json"))
            problem = checkpoint_problem(unchecked)
            if problem is None:
                os.replace(unchecked, path)
                os.replace(unchecked.with_suffix(".json"), path.with_suffix(".json"))
                return True
        except StorageError as error:
            if error.cause != "missing":  # deleted since the listing
                raise
            problem = "gone"
        finally:
            for left in self._folder.checkpoints.glob(".fetched-*"):
                left.unlink()
        _warn(f"{self._storage.object_uri(name)}: {problem}; using the checkpoint before it")
        return False

    def _remote_spent(self) -> float:
        with tempfile.TemporaryDirectory() as scratch:
            self._storage.download(CLOCK, Path(scratch) / CLOCK)
            return self._spent(Path(scratch) / CLOCK)

    @staticmethod
    def _spent(clock: Path) -> float:
        try:
            return sum(read_json(clock)["inside"].values())
        except (OSError, ValueError, KeyError):
            return 0.0

    # --- while it trains ---

    def enqueue(self, checkpoint: Path) -> None:
        """Copy a checkpoint that has just been saved, in the background; one that still waits gives way to it."""
        linked = checkpoint.with_name(f"{_SENDING}{checkpoint.name}")
        try:
            linked.unlink(missing_ok=True)
            os.link(checkpoint, linked)
            description = checkpoint.with_suffix(".json").read_text()
            queued = _QueuedCheckpoint(f"checkpoints/{checkpoint.name}", linked, description)
        except OSError as error:
            _warn(f"runs_remote: {checkpoint}: {error.strerror}; not copied to {self.uri}")
            return
        with self._changed:
            if self._next is not None and self._next.file != linked:
                self._next.file.unlink(missing_ok=True)
            self._next = queued
            self._changed.notify_all()
        if self._thread is None:
            for left in set(checkpoint.parent.glob(f"{_SENDING}*")) - {linked}:
                left.unlink(missing_ok=True)  # of a start that was killed
            self._thread = threading.Thread(target=self._run, name="remote-run", daemon=True)
            self._thread.start()

    def wait(self, seconds: float | None = None) -> Exception | None:
        """Wait until nothing is left to copy; returns what went wrong with the last checkpoint, if anything did."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._next is None and not self._busy, seconds):
                return TimeoutError(f"{self.uri}: the checkpoint was not copied within {seconds:.0f} s")
            return self._problem

    def flush(self, seconds: float) -> None:
        """When a start ends that is to be continued: wait for the copy, and renew the record and clock in it."""
        for newest in checkpoint_files(self._folder.checkpoints)[:1]:
            self.enqueue(newest)
        problem = self.wait(seconds)
        if isinstance(problem, TimeoutError):
            _warn(f"runs_remote: {problem}")

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None)
                queued, self._next, self._busy = self._next, None, True
            assert queued is not None
            problem: Exception | None = None
            try:
                self._send(queued)
            except Exception as error:  # whatever it is, the training goes on
                problem = error
                _warn(f"runs_remote: {_one_line(error)}; it is tried again with the next checkpoint")
            with self._changed:
                if self._next is None or self._next.file != queued.file:
                    queued.file.unlink(missing_ok=True)
                self._problem, self._busy = problem, False
                self._changed.notify_all()

    def _send(self, queued: _QueuedCheckpoint) -> None:
        if self._sent != queued.description:
            self._storage.upload(queued.file, queued.name)
        if not self._tokenizer_sent:
            for path in sorted((self._folder.path / "tokenizer").glob("*")):
                self._storage.upload(path, f"tokenizer/{path.name}")
            self._tokenizer_sent = True
        for name in _WITH_EVERY_CHECKPOINT:
            if (self._folder.path / name).is_file():
                self._storage.upload(self._folder.path / name, name)
        with tempfile.TemporaryDirectory() as scratch:
            description = Path(scratch) / "checkpoint.json"
            description.write_text(queued.description)
            self._storage.upload(description, _json(queued.name))
        self._sent = queued.description
        self._delete_old(queued.name)

    def _delete_old(self, newest: str) -> None:
        """As RollingCheckpoints does here: `newest` and the whole ones before it stay, `keep` in all."""
        names = self._storage.list_sizes("checkpoints")
        files = sorted((name for name in names if name.endswith(".pt")), reverse=True)
        keep = [name for name in files if name <= newest and _json(name) in names][: self._keep]
        for name in set(files) - set(keep):
            self._storage.delete(_json(name))
            self._storage.delete(name)

    # --- when it is over ---

    def finish(self) -> Exception | None:
        """Copy all that the run folder has now, but for what `seal` copies; returns what went wrong."""
        problem = self.wait()
        try:
            saved = newest_checkpoint(self._folder.checkpoints, quiet=True)
            if saved is not None and (problem is not None or self._thread is None):
                text = saved.path.with_suffix(".json").read_text()
                self._send(_QueuedCheckpoint(f"checkpoints/{saved.path.name}", saved.path, text))
            for name in self._files():
                if Path(name).parts[0] not in ("checkpoints", BRANCH_POINTS, RECORD, *_PAGE):
                    self._storage.upload(self._folder.path / name, name)
        except (CramError, OSError) as error:
            return error
        return None

    def finalize(self) -> Exception | None:
        """Copy the page and the record, which says from now on that the copy is complete; returns what went wrong."""
        try:
            for name in [*(name for name in self._files() if Path(name).parts[0] in _PAGE), RECORD]:
                self._storage.upload(self._folder.path / name, name)
        except (CramError, OSError) as error:
            return error
        return None

    def _files(self) -> list[str]:
        """The files of the run folder, by their names in it, but for hidden ones."""
        names = [path.relative_to(self._folder.path) for path in sorted(self._folder.path.rglob("*")) if path.is_file()]
        return [str(name) for name in names if not any(part.startswith(".") for part in name.parts)]

    def upload_missing(self) -> int:
        """For a run that is over: copy what a start before this one could not. Returns the exit status."""
        try:
            record = self._folder.read_record()
            if record is None or record == self.read_record():
                return 0
            self.check()
        except CramError as error:
            return report_failure(self, error)
        print(f"{self._folder.path}: copying it to {self.uri}", flush=True)
        problem = self.finish() or self.finalize()
        return 0 if problem is None else report_failure(self, problem)


def report_failure(remote: RunMirror, problem: Exception) -> int:
    """Say that the copy is not complete, in one line; returns the exit status."""
    _warn(
        f"runs_remote: {_one_line(problem)}; the results are here and whole, the copy in {remote.uri} is not: "
        "the same command tries again"
    )
    return 1


def _json(name: str) -> str:
    return f"{name.removesuffix('.pt')}.json"


def _step(name: str) -> int:
    with contextlib.suppress(ValueError):
        return int(Path(name).stem.removeprefix("step-"))
    return -1


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, (CramError, TimeoutError)) else f"{type(error).__name__}: {text}"


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
