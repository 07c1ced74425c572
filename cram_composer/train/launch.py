"""Whether a run starts, continues, or is over already; nothing is written before that is settled."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cram_composer.config import Composed
from cram_composer.config.recipes import leaves
from cram_composer.errors import CramError
from cram_composer.jobs.processes import ENDS_WITH_PARENT, end_with_parent
from cram_composer.runs.folder import RunFolder
from cram_composer.train.prewarm import probe_vector_instructions

if TYPE_CHECKING:
    from cram_composer.config.schema.run import RunConfig
    from cram_composer.runs.mirror import RunMirror


def start(composed: Composed, path: Path) -> int:
    """Train in the run folder `path`; returns the process's exit status."""
    started = time.monotonic()
    _end_with_the_launcher()
    first = os.environ.get("RANK", "0") == "0"
    folder = RunFolder(path)
    remote = _remote(folder, composed)
    if _is_over(folder, composed, first, remote):
        return remote.upload_missing() if remote is not None and first else 0
    from cram_composer.device import choose_device

    device = choose_device(composed.config, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if device.name == "cpu" and device.compile != "off":
        probe_vector_instructions()
    from cram_composer.train.build import run  # Composer, which takes seconds: time for the answer

    if first and remote is not None:
        remote.check()
    if first:
        folder.lock()
    try:
        # Read again: another process may have trained here until it let go of the lock.
        if _is_over(folder, composed, first, remote):
            return 0
        if first and remote is not None:
            remote.restore()
        return run(composed, device, folder, folder.read_record(), started)
    finally:
        folder.unlock()


def _end_with_the_launcher() -> None:
    """Have Linux send SIGTERM when a launcher or a sweep is gone: killed, they do not end what they started."""
    sweep = os.environ.get(ENDS_WITH_PARENT)
    if "LOCAL_RANK" in os.environ or sweep is not None:
        end_with_parent(signal.SIGTERM)
    if sweep is not None and os.getppid() != int(sweep):
        raise CramError("the sweep that started this run is gone")


def _remote(folder: RunFolder, composed: Composed) -> RunMirror | None:
    config: RunConfig = composed.config
    if config.runs_remote is None:
        return None
    from cram_composer.runs.mirror import RunMirror

    return RunMirror(folder, config.runs_remote, config.checkpoint.keep)


def _is_over(folder: RunFolder, composed: Composed, say: bool, remote: RunMirror | None) -> bool:
    """Whether the run is over, here or in the copy that another machine may have made of it."""
    if _ended(folder.read_record(), composed, str(folder.path), say):
        return True
    return remote is not None and _ended(remote.read_record(), composed, remote.uri, say)


def _ended(earlier: dict[str, Any] | None, composed: Composed, where: str, say: bool) -> bool:
    if earlier is None:
        return False
    check_same(earlier, composed, where)
    over = earlier["status"] in ("finished", "stopped-early")
    if over and say:
        print(f"{where}: this run is over ({earlier['status']}); choose run_name=... for another")
    return over


def check_same(earlier: dict[str, Any], composed: Composed, where: str) -> None:
    """A run continues with the configuration it began with."""
    if earlier["config_hash"] == composed.hash:
        return
    before, now = leaves(earlier["config"]), leaves(composed.plain)
    differing = [key for key in now if before.get(key) != now[key]] or ["the schema"]
    raise CramError(
        f"{where}: holds a run with another configuration ({', '.join(differing[:5])}); "
        "choose run_name=... for a new run, or go back to that configuration to continue"
    )
