"""The run folder on disk: its lock, its record and its clock; and what the run ran on."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cram_composer.budget.ledger import Ledger
from cram_composer.config.renamed import rename_keys
from cram_composer.errors import CramError
from cram_composer.storage.files import read_json, write_atomic, write_json

RECORD = "record.json"
RECORD_FORMAT = 2
CLOCK = "clock.json"
METRICS = "metrics.jsonl"
_ENDING_SECONDS = 30.0


class RunFolder:
    """One run's folder on disk; only rank 0 writes to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FileLock | None = None

    @property
    def checkpoints(self) -> Path:
        """Folder of the rolling checkpoints."""
        return self.path / "checkpoints"

    def lock(self) -> None:
        """Keep other processes out until this one ends. Raises CramError when another one is in."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / ".lock")
        holder = self.path / ".lock-holder"
        try:
            self._lock.acquire(timeout=_ENDING_SECONDS if _has_lost_its_parent(holder) else 0)
            holder.write_text(f"{os.getpid()} {os.getppid()}")
        except Timeout:
            raise CramError(
                f"{self.path}: another process is training in this run folder; wait for it or choose run_name=..."
            ) from None

    def unlock(self) -> None:
        """Let others in."""
        if self._lock is not None:
            self._lock.release()

    def keep_tokenizer(self, tokenizer: Path) -> None:
        """Keep the tokenizer with the checkpoints, so that they can be exported without the data set."""
        shutil.copytree(tokenizer, self.path / "tokenizer", dirs_exist_ok=True)

    def read_record(self) -> dict[str, Any] | None:
        """The record of an earlier start of this run, None if there is none."""
        path = self.path / RECORD
        return upgrade_record(read_json(path)) if path.is_file() else None

    def write_record(self, record: dict[str, Any]) -> None:
        """Replace the record."""
        write_json(self.path / RECORD, record)

    def write_config(self, text: str) -> None:
        """Replace the resolved configuration."""
        write_atomic(self.path / "config.yaml", text)

    def read_clock(self) -> dict[str, Any] | None:
        """The last heartbeat: {"inside": seconds per phase, "step": steps done, "clean": bool}."""
        path = self.path / CLOCK
        return read_json(path) if path.is_file() else None

    def write_clock(self, ledger: Ledger, step: int, clean: bool) -> None:
        """Write a heartbeat; `clean` says that a checkpoint of exactly this step exists."""
        write_json(self.path / CLOCK, {"inside": ledger.snapshot(), "step": step, "clean": clean})


def _has_lost_its_parent(holder: Path) -> bool:
    """Whether the process that holds the lock is ending, because the launcher that started it is gone."""
    try:
        pid, parent = holder.read_text().split()
        status = Path(f"/proc/{pid}/status").read_text()
    except (OSError, ValueError):
        return True  # nobody, or somebody on the way in or out
    return f"PPid:\t{parent}\n" not in status


def upgrade_record(record: Any) -> Any:
    """Rename in a record of format 1 what later formats call otherwise; anything else is returned unchanged."""
    if not isinstance(record, dict) or record.get("format_version") != 1:
        return record
    upgraded = {"attempts" if key == "segments" else key: value for key, value in record.items()}
    upgraded["format_version"] = RECORD_FORMAT
    if record.get("status") == "killed-early":
        upgraded["status"] = "stopped-early"
    if isinstance(record.get("config"), dict):
        upgraded["config"] = rename_keys(record["config"])
    return upgraded


def device_hours(attempts: list[dict[str, Any]], total: float, world_size: int) -> float:
    """Budget seconds of every start of a run times its devices, in hours.

    Args:
        attempts: of record.json; one written before starts noted their devices had `world_size` of them.
        total: budget seconds up to now, what was lost included.
        world_size: devices of the present start.
    """
    begins = [attempt["spent_before"] for attempt in attempts] or [0.0]
    devices = [attempt.get("world_size", world_size) for attempt in attempts] or [world_size]
    spans = [end - begin for begin, end in zip(begins, [*begins[1:], total], strict=True)]
    return sum(span * count for span, count in zip(spans, devices, strict=True)) / 3600.0


def environment() -> dict[str, Any]:
    """What the run ran on: versions, processor, GPUs, git revision. No host name."""
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
        revision = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return revision.stdout.strip() or None
