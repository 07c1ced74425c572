"""Decide whether to start, resume or skip a run, before writing anything."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cram_composer.config import Composed
from cram_composer.config.identity import learnt_differences
from cram_composer.errors import CramError
from cram_composer.jobs.processes import ENDS_WITH_PARENT, end_with_parent
from cram_composer.runs.folder import FINISHED, RunFolder
from cram_composer.train.extras import check_extras
from cram_composer.train.notify import notifying
from cram_composer.train.prewarm import probe_vector_instructions

if TYPE_CHECKING:
    from cram_composer.config.schema.run import RunConfig
    from cram_composer.runs.mirror import RunMirror


def start(composed: Composed, path: Path, restart: bool = False) -> int:
    """Train in the run folder `path`; return the exit status of the process.

    Args:
        composed: the configuration.
        path: the run folder.
        restart: start from step 0 with the whole budget; files of earlier attempts are set aside.

    Raises:
        CramError: the folder holds another run, is in use or damaged, or the configuration does not fit the machine.
    """
    if restart and composed.config.runs_remote is not None:
        raise CramError("--restart: would mix two runs in runs_remote; set run_name=... for a new run instead")
    started = time.monotonic()
    _end_with_launcher()
    is_rank_zero = os.environ.get("RANK", "0") == "0"
    folder = RunFolder(path)
    mirror = _mirror(folder, composed)
    if not restart and _is_finished(folder, composed, mirror, announce=is_rank_zero):
        return _complete(folder, mirror) if is_rank_zero else 0
    from cram_composer.device import choose_device, idle_gpu

    device = choose_device(composed.config, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    check_extras(composed.config, device.name)
    if is_rank_zero and device.name == "cpu" and (gpu := idle_gpu()) is not None:
        print(f"device: cpu, although this machine has a GPU ({gpu}); yamls/cram-gpu.yaml uses it", flush=True)
    if device.name == "cpu" and device.compile != "off":
        probe_vector_instructions()
    from cram_composer.train.loop import run  # imports Composer for seconds, while the probe runs

    if is_rank_zero and mirror is not None:
        mirror.check_access()
    if is_rank_zero:
        folder.lock()
    try:
        # Check again: another process may have trained here before it released the lock.
        if not restart and _is_finished(folder, composed, mirror, announce=is_rank_zero):
            return 0
        if restart and is_rank_zero and (aside := folder.set_aside()) is not None:
            print(f"{path}: starting from step 0; the earlier files are in {aside}", flush=True)
        if is_rank_zero and mirror is not None:
            mirror.restore()
        with notifying(composed.config.notify if is_rank_zero else None, folder):
            return run(composed, device, folder, None if restart else folder.read_record(), started)
    except CramError:
        folder.discard_unstarted()
        raise
    finally:
        folder.unlock()


def _end_with_launcher() -> None:
    """Have Linux send SIGTERM if the launcher or sweep dies, because a killed parent cannot end its processes."""
    sweep = os.environ.get(ENDS_WITH_PARENT)
    if "LOCAL_RANK" in os.environ or sweep is not None:
        end_with_parent(signal.SIGTERM)
    if sweep is not None and os.getppid() != int(sweep):
        raise CramError("the sweep that started this run has exited; run the sweep again to resume")


def _mirror(folder: RunFolder, composed: Composed) -> RunMirror | None:
    config: RunConfig = composed.config
    if config.runs_remote is None:
        return None
    from cram_composer.runs.mirror import RunMirror

    return RunMirror(folder, config.runs_remote, config.checkpoint.keep)


def _is_finished(folder: RunFolder, composed: Composed, mirror: RunMirror | None, announce: bool) -> bool:
    """Check whether the run is finished here or in its mirror, where another machine may have trained it."""
    if _has_finished(folder.read_record(), composed, str(folder.path), announce):
        return True
    return mirror is not None and _has_finished(mirror.read_record(), composed, mirror.uri, announce)


def _complete(folder: RunFolder, mirror: RunMirror | None) -> int:
    """Write or upload the results of a finished run that are missing; return the exit status."""
    record = folder.read_record()
    if record is None or (mirror is None and not record.get("missing")):
        return 0
    from cram_composer.train.complete import complete

    folder.lock()
    try:
        return complete(folder, mirror)
    finally:
        folder.unlock()


def _has_finished(record: dict[str, Any] | None, composed: Composed, where: str, announce: bool) -> bool:
    if record is None:
        return False
    check_same(record, composed, where)
    finished = record["status"] in FINISHED
    if finished and announce:
        print(f"{where}: already {record['status']}; set run_name=... to start another run")
    return finished


def check_same(record: dict[str, Any], composed: Composed, where: str) -> None:
    """Check that a run is resumed with its own configuration, apart from keys that may change on resume.

    Args:
        record: the record of earlier attempts.
        composed: the configuration of this attempt.
        where: the run folder or mirror, for the error message.

    Raises:
        CramError: a setting that is fixed for a run differs.
    """
    differing = learnt_differences(record["config"], composed.plain)
    if not differing:
        return
    if record.get("status") in FINISHED and all(key.startswith("budget.") for key in differing):
        raise CramError(
            f"{where}: has finished with another budget ({', '.join(differing)}); train it further with `cram extend "
            f"{where} --budget ...`, a new run from its weights, or with `cram branch` from a checkpoint at a constant "
            "rate; set run_name=... for a new run from scratch"
        )
    raise CramError(
        f"{where}: holds a run with another configuration ({', '.join(differing[:5])}); "
        "set run_name=... for a new run, or restore that configuration to resume"
    )
