"""The run folder on disk (lock, record and clock) and a description of the environment of a run."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any, Required

from filelock import FileLock, Timeout
from typing_extensions import TypedDict

from cram_composer.budget.ledger import Ledger
from cram_composer.config.renamed import rename_keys
from cram_composer.errors import CramError
from cram_composer.storage.files import naming_full_disk, read_checked, write_atomic, write_json

RECORD = "record.json"
RECORD_FORMAT = 2
FINISHED = ("finished", "stopped-early")  # statuses of a run whose training is complete
CLOCK = "clock.json"
METRICS = "metrics.jsonl"
ROW_LOSSES = "row_losses.npy"
EVALUATIONS = "evaluations.json"
DISTURBED_SHARE = 0.05  # of the CPU time, taken by other processes, from which a run says so
SAVING = ".saving-"  # begins the name of a checkpoint that is being saved
_LEFTOVERS = (
    *(".*.tmp", ".*.old", "figures/.*.tmp", "branch-points/.*.tmp"),
    *("checkpoints/.*.tmp", f"checkpoints/{SAVING}*", "checkpoints/.fetched-*", "checkpoints/.sending-*"),
)
_LOCK, _LOCK_HOLDER = ".lock", ".lock-holder"
_ORPHAN_EXIT_SECONDS = 30.0


class Clock(TypedDict):
    """clock.json: the last heartbeat of a run; `clean` means that a checkpoint of exactly this step exists."""

    inside: dict[str, float]  # budget seconds per phase
    step: int
    clean: bool


class _Attempt(TypedDict, total=False):
    started_at_step: int
    spent_before: float
    world_size: int


class _Ledger(TypedDict, total=False):
    inside: dict[str, float]
    outside: dict[str, float]


class _Record(TypedDict, total=False):
    """The keys of record.json that readers rely on."""

    status: Required[str]
    config: Required[dict[str, Any]]
    config_hash: str
    recipes: list[str]
    provenance: dict[str, str]
    environment: dict[str, Any]
    data: dict[str, Any]
    budget: dict[str, Any]
    ledger: _Ledger
    metrics: dict[str, Any]
    attempts: list[_Attempt]


class RunFolder:
    """The folder of one run; only rank 0 writes to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FileLock | None = None
        self._created: list[Path] = []  # by lock(), the outermost first

    @property
    def checkpoints(self) -> Path:
        """Folder of the rolling checkpoints."""
        return self.path / "checkpoints"

    def lock(self) -> None:
        """Lock the folder for this process and remove the temporary files of killed ones.

        Raises:
            CramError: another process holds the lock.
        """
        self._created = [path for path in reversed([self.path, *self.path.parents]) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / _LOCK)
        holder = self.path / _LOCK_HOLDER
        try:
            self._lock.acquire(timeout=_ORPHAN_EXIT_SECONDS if _is_orphaned(holder) else 0)
            holder.write_text(f"{os.getpid()} {os.getppid()}")
        except Timeout:
            raise CramError(
                f"{self.path}: another process is training in this run folder; wait for it or set run_name=..."
            ) from None
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        """Remove unfinished files and folders, except those of a running process, such as `cram export`."""
        for path in (found for pattern in _LEFTOVERS for found in self.path.glob(pattern)):
            writer = re.search(r"\.(\d+)(?:\.\d+)?\.(?:tmp|old)$", path.name)
            if writer is not None and int(writer[1]) != os.getpid() and Path(f"/proc/{writer[1]}").exists():
                continue
            original = path.with_name(path.name[1:].partition(".")[0])
            if path.suffix == ".old" and not original.exists():
                path.rename(original)  # killed while replacing it
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def unlock(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.release()

    def discard_unstarted(self) -> None:
        """Remove a folder that `lock` created and in which no run was started."""
        if self.path in self._created and not (self.path / RECORD).exists():
            shutil.rmtree(self.path, ignore_errors=True)
            for path in reversed(self._created[:-1]):
                with contextlib.suppress(OSError):  # not empty
                    path.rmdir()

    def set_aside(self) -> Path | None:
        """Move the files of earlier attempts to `.NAME.before-restart`, replacing older ones; None if there are none.

        The folder is beside this one and hidden, so that listings and patterns leave it out.
        """
        files = [path for path in self.path.iterdir() if path.name not in (_LOCK, _LOCK_HOLDER)]
        if not files:
            return None
        target = self.path.with_name(f".{self.path.name}.before-restart")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        # The record last, so that a kill in between leaves a run that starts from step 0.
        for path in sorted(files, key=lambda path: path.name == RECORD):
            path.rename(target / path.name)
        return target

    def copy_tokenizer(self, tokenizer: Path) -> None:
        """Copy the tokenizer into the folder, so that checkpoints can be exported without the data set."""
        with naming_full_disk(self.path / "tokenizer"):
            shutil.copytree(tokenizer, self.path / "tokenizer", dirs_exist_ok=True)

    def read_record(self) -> dict[str, Any] | None:
        """Return the record of an earlier start of this run, None if there is none. Raises CramError."""
        return read_record(self.path) if (self.path / RECORD).is_file() else None

    def write_record(self, record: dict[str, Any]) -> None:
        """Replace the record."""
        write_json(self.path / RECORD, record)

    def write_config(self, text: str) -> None:
        """Replace the resolved configuration."""
        write_atomic(self.path / "config.yaml", text)

    def read_clock(self) -> Clock | None:
        """Return the last heartbeat, None before the first. Raises CramError."""
        return read_clock(self.path)

    def write_clock(self, ledger: Ledger, step: int, clean: bool) -> None:
        """Write a heartbeat; `clean` means that a checkpoint of exactly this step exists."""
        write_json(self.path / CLOCK, {"inside": ledger.snapshot(), "step": step, "clean": clean})


def _is_orphaned(holder: Path) -> bool:
    """Return True if the process that holds the lock has lost its launcher and is about to exit."""
    try:
        pid, parent = holder.read_text().split()
        status = Path(f"/proc/{pid}/status").read_text()
    except (OSError, ValueError):
        return True  # no holder, or a holder that is starting or exiting
    return f"PPid:\t{parent}\n" not in status


def read_clock(run: Path) -> Clock | None:
    """Return the last heartbeat of a run folder, None before the first. Raises CramError if the file is damaged."""
    path = run / CLOCK
    if not path.is_file():
        return None
    return read_checked(path, Clock, "restore it, or delete it and lose the count of time after the last checkpoint")


def read_record(path: Path) -> dict[str, Any]:
    """Read the record of a run; convert a record of an earlier format.

    Args:
        path: run folder, or its record.json.

    Raises:
        CramError: no record, a damaged one, or a format that this version does not read.
    """
    file = path if path.name == RECORD else path / RECORD
    if not file.is_file():
        raise CramError(f"{path}: not a run folder, because it has no {RECORD}; give RUNS_DIR/RUN_NAME")
    remedy = "restore it, give another run, or train again with --restart"
    record: dict[str, Any] = read_checked(file, dict, remedy)
    version = record.get("format_version")
    if version not in (1, RECORD_FORMAT):
        newer = isinstance(version, int) and version > RECORD_FORMAT
        raise CramError(
            f"{file}: format_version: must be 1 or {RECORD_FORMAT}, got {version!r}; "
            f"{'use the cram-composer that wrote it' if newer else remedy}"
        )
    read_checked(file, _Record, remedy)
    record = _upgrade_record(record) if version == 1 else record
    if isinstance(objective := (record.get("config") or {}).get("objective"), dict):
        objective.setdefault("name", "mlm")  # the only one before there were names
    return record


def read_evaluations(run: Path) -> dict[str, Any]:
    """Return the rows that `cram eval` wrote for a run, by protocol. Raises CramError if the file is damaged."""
    path, remedy = run / EVALUATIONS, "restore it, or delete it and evaluate again"
    return dict(read_checked(path, dict[str, dict[str, Any]], remedy)) if path.is_file() else {}


def _upgrade_record(record: dict[str, Any]) -> dict[str, Any]:
    """Convert a record of format 1 to the current names of keys and values."""
    upgraded = {"attempts" if key == "segments" else key: value for key, value in record.items()}
    upgraded["format_version"] = RECORD_FORMAT
    if record.get("status") == "killed-early":
        upgraded["status"] = "stopped-early"
    if isinstance(record.get("config"), dict):
        upgraded["config"] = rename_keys(record["config"])
    return upgraded


def device_hours(attempts: list[dict[str, Any]], total: float, world_size: int) -> float:
    """Sum budget seconds times devices over the attempts of a run, in hours.

    Args:
        attempts: as in record.json; attempts without `world_size` (from old versions) use the current one.
        total: budget seconds up to now, including lost time.
        world_size: devices of the current attempt.
    """
    begins = [attempt["spent_before"] for attempt in attempts] or [0.0]
    devices = [attempt.get("world_size", world_size) for attempt in attempts] or [world_size]
    spans = [end - begin for begin, end in zip(begins, [*begins[1:], total], strict=True)]
    return sum(span * count for span, count in zip(spans, devices, strict=True)) / 3600.0


def environment() -> dict[str, Any]:
    """Describe versions, processor, GPUs and git revision, without the host name."""
    import torch
    from composer.utils.collect_env import get_cpu_model

    names = ("torch", "mosaicml", "mosaicml-streaming", "transformers", "tokenizers", "numpy", "omegaconf", "triton")
    libraries = {}
    for name in (*names, "cram-composer"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            libraries[name] = metadata.version(name)
    return {
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": get_cpu_model(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "libraries": libraries,
    }


def _git_revision() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        revision = subprocess.run(  # noqa: S603 - fixed arguments, without a shell
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],  # noqa: S607 - git of the user's PATH
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return revision.stdout.strip() or None
