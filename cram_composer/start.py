"""Whether a run starts, continues, or is over already; nothing is written before that is settled."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from cram_composer.config import Composed
from cram_composer.errors import CramError
from cram_composer.record import RunFolder

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def start(composed: Composed, path: Path) -> int:
    """Train in the run folder `path`; returns the process's exit status."""
    started = time.monotonic()
    _end_with_the_launcher()
    first = os.environ.get("RANK", "0") == "0"
    folder = RunFolder(path)
    if _is_over(folder, composed, first):
        return 0
    from cram_composer.device import choose_device

    device = choose_device(composed.config, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    from cram_composer.training import run

    if first:
        folder.lock()
    try:
        # Read again: another process may have trained here until it let go of the lock.
        return 0 if _is_over(folder, composed, first) else run(composed, device, folder, folder.read_record(), started)
    finally:
        folder.unlock()


def _end_with_the_launcher() -> None:
    """Have Linux send SIGTERM when Composer's launcher is gone: killed itself, it does not end what it started."""
    if "LOCAL_RANK" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _is_over(folder: RunFolder, composed: Composed, say: bool) -> bool:
    earlier = folder.read_record()
    if earlier is None:
        return False
    _check_same(earlier, composed, folder.path)
    over = earlier["status"] in ("finished", "killed-early")
    if over and say:
        print(f"{folder.path}: this run is over ({earlier['status']}); choose run_name=... for another")
    return over


def _check_same(earlier: dict[str, Any], composed: Composed, path: Path) -> None:
    """A run continues with the configuration it began with."""
    if earlier["config_hash"] == composed.hash:
        return
    before, now = _flat(earlier["config"]), _flat(composed.plain)
    differing = [key for key in now if before.get(key) != now[key]] or ["the schema"]
    raise CramError(
        f"{path}: holds a run with another configuration ({', '.join(differing[:5])}); "
        "choose run_name=... for a new run, or go back to that configuration to continue"
    )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    nested = (_flat(item, f"{prefix}.{key}" if prefix else key) for key, item in value.items())
    return {key: item for flat in nested for key, item in flat.items()}
