"""Copies of a run in object storage: checkpoints during training, everything at the end, and restoring from them.

The layout below `runs_remote/RUN_NAME` is that of the run folder. A checkpoint's `.json` is uploaded after its `.pt`,
trace, record and clock, so every checkpoint with a `.json` can be resumed.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cram_composer.errors import CramError
from cram_composer.runs.branch_points import BRANCH_POINTS_FOLDER
from cram_composer.runs.checkpoints import checkpoint_files, checkpoint_problem, newest_checkpoint
from cram_composer.runs.folder import CLOCK, RECORD, ROW_LOSSES, RunFolder, read_record
from cram_composer.storage.client import METADATA_BYTES, Storage, StorageError
from cram_composer.storage.files import read_json
from cram_composer.storage.paths import resolve_inside

_SLOWEST = 1e6  # bytes per second of a copy
_UPLOAD_PREFIX = ".sending-"
_CHECKPOINT_COMPANIONS = ("config.yaml", "trace.jsonl", "metrics.jsonl", ROW_LOSSES, RECORD, CLOCK)
_REPORT_FILES = ("report.html", "figures")  # written after everything else


@dataclass(frozen=True)
class _QueuedCheckpoint:
    """A checkpoint to upload: the content of its .json, and a hard link, because the original may be deleted."""

    name: str
    checkpoint: Path
    metadata: str


class RunMirror:
    """The copy of one run in object storage, written by rank 0 from a background thread.

    No process is started, so uploads end with the run.
    """

    def __init__(self, folder: RunFolder, runs_remote: str, keep: int) -> None:
        self._folder = folder
        self._storage: Storage = Storage(f"{runs_remote.rstrip('/')}/{folder.path.name}")
        self._keep = keep
        self._queued: _QueuedCheckpoint | None = None
        self._busy = False
        self._problem: Exception | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._tokenizer_uploaded = False
        self._last_uploaded: str | None = None  # .json of the last uploaded checkpoint

    @property
    def uri(self) -> str:
        """URI of the copy."""
        return self._storage.uri

    def check_access(self) -> None:
        """Check that the copy is writable. Raises StorageError."""
        self._storage.check_access(write=True)

    # --- restoring ---

    def read_record(self) -> dict[str, Any] | None:
        """Return the record of the copy, None if there is none. Raises CramError."""
        with tempfile.TemporaryDirectory() as scratch:
            try:
                self._storage.download(RECORD, Path(scratch) / RECORD)
            except StorageError as error:
                if error.cause == "missing":
                    return None
                raise
            return read_record(Path(scratch))

    def restore(self) -> None:
        """Download the newest intact checkpoint and its companion files, if it is ahead of the local ones.

        The record comes last: without it the next start begins from scratch. Raises CramError.
        """
        local = newest_checkpoint(self._folder.checkpoints, quiet=True)
        sizes = self._restorable_sizes()
        names = [name for name in sizes if name.startswith("checkpoints/")]
        complete = sorted(n for n in names if n.endswith(".pt") and _metadata_name(n) in sizes)
        ahead = [n for n in complete if local is None or _step_number(n) > local.step]
        has_record = (self._folder.path / RECORD).is_file()
        if RECORD not in sizes or (has_record and not ahead):
            return
        print(f"{self._folder.path}: resuming from the copy in {self.uri}", flush=True)
        for name in reversed(ahead):
            if self._download_checkpoint(name, sizes):
                break
        else:
            if has_record:
                return  # all of them are damaged
        local_seconds = self._clock_seconds(self._folder.path / CLOCK)
        for name in sorted(sizes, key=lambda name: name == RECORD):
            if not name.startswith("checkpoints/"):
                if name == CLOCK and 0 < local_seconds >= self._remote_clock_seconds():
                    continue  # time spent here after the copy was made counts as lost
                self._download(name, self._local_path(name), sizes)

    def _restorable_sizes(self) -> dict[str, int]:
        """Return the sizes of the objects that a run is restored from; refuse names that lead out of the run folder."""
        folders = ("checkpoints/", "tokenizer/")
        found = self._storage.list_sizes().items()
        sizes = {name: size for name, size in found if name in _CHECKPOINT_COMPANIONS or name.startswith(folders)}
        for name in sizes:
            self._local_path(name)
        return sizes

    def _local_path(self, name: str) -> Path:
        return resolve_inside(self._folder.path, name, self._storage.uri)

    def _download(self, name: str, path: Path, sizes: dict[str, int]) -> None:
        """Download an object of a listed size, in a time that leaves large ones at least 1 MB/s."""
        limit = max(sizes[name], METADATA_BYTES)  # a small file may have grown since
        self._storage.download(name, path, limit, self._storage.deadline + sizes[name] / _SLOWEST)

    def _download_checkpoint(self, name: str, sizes: dict[str, int]) -> bool:
        path = self._local_path(name)
        try:
            # Under a temporary name until the hash is verified, because an existing local file may be intact.
            unchecked = path.with_name(f".fetched-{path.name}")
            self._download(name, unchecked, sizes)
            self._download(_metadata_name(name), unchecked.with_suffix(".json"), sizes)
            problem = checkpoint_problem(unchecked)
            if problem is None:
                os.replace(unchecked, path)
                os.replace(unchecked.with_suffix(".json"), path.with_suffix(".json"))
                return True
        except StorageError as error:
            if error.cause != "missing":  # not deleted since the listing
                raise
            problem = "deleted during the download"
        finally:
            for leftover in self._folder.checkpoints.glob(".fetched-*"):
                leftover.unlink()
        _warn(f"{self._storage.object_uri(name)}: {problem}; using the checkpoint before it")
        return False

    def _remote_clock_seconds(self) -> float:
        with tempfile.TemporaryDirectory() as scratch:
            self._storage.download(CLOCK, Path(scratch) / CLOCK)
            return self._clock_seconds(Path(scratch) / CLOCK)

    @staticmethod
    def _clock_seconds(clock: Path) -> float:
        try:
            return sum(read_json(clock)["inside"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return 0.0

    # --- during training ---

    def enqueue(self, checkpoint: Path) -> None:
        """Upload a checkpoint in the background; it replaces one that is still waiting."""
        link = checkpoint.with_name(f"{_UPLOAD_PREFIX}{checkpoint.name}")
        try:
            link.unlink(missing_ok=True)
            os.link(checkpoint, link)
            metadata = checkpoint.with_suffix(".json").read_text()
            queued = _QueuedCheckpoint(f"checkpoints/{checkpoint.name}", link, metadata)
        except OSError as error:
            _warn(f"runs_remote: {checkpoint}: {error.strerror}; not copied to {self.uri}")
            return
        with self._changed:
            if self._queued is not None and self._queued.checkpoint != link:
                self._queued.checkpoint.unlink(missing_ok=True)
            self._queued = queued
            self._changed.notify_all()
        if self._thread is None:
            for leftover in set(checkpoint.parent.glob(f"{_UPLOAD_PREFIX}*")) - {link}:
                leftover.unlink(missing_ok=True)  # of an attempt that was killed
            self._thread = threading.Thread(target=self._upload_loop, name="run-mirror", daemon=True)
            self._thread.start()

    def wait(self, seconds: float | None = None) -> Exception | None:
        """Wait until the queue is empty; return the error of the last upload, None if it succeeded."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._queued is None and not self._busy, seconds):
                return TimeoutError(f"{self.uri}: the checkpoint was not copied within {seconds:.0f} s")
            return self._problem

    def flush(self, seconds: float) -> None:
        """Upload the newest checkpoint, record and clock, at the end of an attempt that will be resumed."""
        for newest in checkpoint_files(self._folder.checkpoints)[:1]:
            self.enqueue(newest)
        problem = self.wait(seconds)
        if isinstance(problem, TimeoutError):
            _warn(f"runs_remote: {problem}")

    def _upload_loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queued is not None)
                queued, self._queued, self._busy = self._queued, None, True
            assert queued is not None
            problem: Exception | None = None
            try:
                self._upload_checkpoint(queued)
            except Exception as error:  # an upload error must not end the training
                problem = error
                _warn(f"runs_remote: {_one_line(error)}; retrying with the next checkpoint")
            with self._changed:
                if self._queued is None or self._queued.checkpoint != queued.checkpoint:
                    queued.checkpoint.unlink(missing_ok=True)
                self._problem, self._busy = problem, False
                self._changed.notify_all()

    def _upload_checkpoint(self, queued: _QueuedCheckpoint) -> None:
        if self._last_uploaded != queued.metadata:
            self._storage.upload(queued.checkpoint, queued.name)
        if not self._tokenizer_uploaded:
            for path in sorted((self._folder.path / "tokenizer").glob("*")):
                self._storage.upload(path, f"tokenizer/{path.name}")
            self._tokenizer_uploaded = True
        for name in _CHECKPOINT_COMPANIONS:
            if (self._folder.path / name).is_file():
                self._storage.upload(self._folder.path / name, name)
        with tempfile.TemporaryDirectory() as scratch:
            metadata = Path(scratch) / "checkpoint.json"
            metadata.write_text(queued.metadata)
            self._storage.upload(metadata, _metadata_name(queued.name))
        self._last_uploaded = queued.metadata
        self._delete_old(queued.name)

    def _delete_old(self, newest: str) -> None:
        """Delete all but the `keep` newest complete checkpoints up to `newest`, as RollingCheckpoints does locally."""
        names = self._storage.list_sizes("checkpoints")
        files = sorted((name for name in names if name.endswith(".pt")), reverse=True)
        keep = [name for name in files if name <= newest and _metadata_name(name) in names][: self._keep]
        for name in set(files) - set(keep):
            self._storage.delete(_metadata_name(name))
            self._storage.delete(name)

    # --- after training ---

    def upload_in_time(self) -> Exception | None:
        """Upload the run folder except the report and the record; return the error, if any.

        After the storage's deadline and a second per megabyte, the run ends with a TimeoutError here, whatever the
        storage does.
        """
        return self._in_time(self.upload_files)

    def finalize_in_time(self) -> Exception | None:
        """Upload the report and the record, which marks the copy as complete, as `upload_in_time`."""
        return self._in_time(self.finalize)

    def _in_time(self, upload: Callable[[], Exception | None]) -> Exception | None:
        size = sum((self._folder.path / name).stat().st_size for name in self._visible_files())
        seconds = self._storage.deadline + size / _SLOWEST
        results: list[Exception | None] = []
        thread = threading.Thread(target=lambda: results.append(upload()), daemon=True)  # ends with the process
        thread.start()
        thread.join(seconds)
        return results[0] if results else TimeoutError(f"{self.uri}: not copied within {seconds:.0f} s")

    def upload_files(self) -> Exception | None:
        """Upload the run folder except the files that `finalize` uploads; return the error, if any."""
        problem = self.wait()
        try:
            saved = newest_checkpoint(self._folder.checkpoints, quiet=True)
            if saved is not None and (problem is not None or self._thread is None):
                text = saved.path.with_suffix(".json").read_text()
                self._upload_checkpoint(_QueuedCheckpoint(f"checkpoints/{saved.path.name}", saved.path, text))
            for name in self._visible_files():
                if Path(name).parts[0] not in ("checkpoints", BRANCH_POINTS_FOLDER, RECORD, *_REPORT_FILES):
                    self._storage.upload(self._folder.path / name, name)
        except (CramError, OSError) as error:
            return error
        return None

    def finalize(self) -> Exception | None:
        """Upload the report and the record, which marks the copy as complete; return the error, if any."""
        try:
            for name in [*(name for name in self._visible_files() if Path(name).parts[0] in _REPORT_FILES), RECORD]:
                self._storage.upload(self._folder.path / name, name)
        except (CramError, OSError) as error:
            return error
        return None

    def _visible_files(self) -> list[str]:
        """List the files of the run folder by relative name, without hidden ones."""
        names = [path.relative_to(self._folder.path) for path in sorted(self._folder.path.rglob("*")) if path.is_file()]
        return [str(name) for name in names if not any(part.startswith(".") for part in name.parts)]

    def upload_missing(self) -> int:
        """Complete the copy of a finished run; return the exit status."""
        try:
            record = self._folder.read_record()
            if record is None or record == self.read_record():
                return 0
            self.check_access()
        except CramError as error:
            return report_failure(self, error)
        print(f"{self._folder.path}: uploading to {self.uri}", flush=True)
        problem = self.upload_files() or self.finalize()
        return 0 if problem is None else report_failure(self, problem)


def report_failure(remote: RunMirror, problem: Exception) -> int:
    """Print one line saying that the copy is incomplete; return the exit status."""
    _warn(
        f"runs_remote: {_one_line(problem)}; the local results are complete, the copy in {remote.uri} is not; "
        "run the same command to retry"
    )
    return 1


def _metadata_name(name: str) -> str:
    return f"{name.removesuffix('.pt')}.json"


def _step_number(name: str) -> int:
    with contextlib.suppress(ValueError):
        return int(Path(name).stem.removeprefix("step-"))
    return -1


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, (CramError, TimeoutError)) else f"{type(error).__name__}: {text}"


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
