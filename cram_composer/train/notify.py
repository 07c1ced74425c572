"""Run the user's command when a run ends, fails or stalls."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cram_composer.budget.trace import TRACE
from cram_composer.runs.folder import RunFolder

_LONGEST = 60.0  # seconds that the command may take
STALL_SECONDS = 600.0


@contextmanager
def notifying(command: str | None, folder: RunFolder) -> Iterator[None]:
    """Run the shell command `command` after the block, and while the block makes no step for ten minutes.

    CRAM_RUN is the run folder, CRAM_STATUS the status of the record, "failed" or "stalled", CRAM_REASON the reason,
    which may be empty. A command that fails or takes more than a minute costs a line on the console, not the run.

    Args:
        command: `notify` of the configuration; None for no command.
        folder: the folder of the run.
    """
    if command is None:
        yield
        return
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(command, folder, ended), daemon=True)
    watch.start()
    try:
        yield
    except BaseException as error:
        lines = str(error).splitlines() or [type(error).__name__]
        _run(command, folder, "failed", lines[0])
        raise
    else:
        record = folder.read_record() or {}
        _run(command, folder, str(record.get("status")), record.get("reason") or "")
    finally:
        ended.set()


def _watch(command: str, folder: RunFolder, ended: threading.Event) -> None:
    """Run the command once for every time that the run makes no step for `STALL_SECONDS`."""
    trace, latest = folder.path / TRACE, time.time()  # the clock is written by a thread, also while no step is made
    told = False
    while not ended.wait(STALL_SECONDS / 20):
        if trace.exists() and (written := trace.stat().st_mtime) > latest:
            latest, told = written, False
        if time.time() - latest > STALL_SECONDS and not told:
            told = True
            _run(command, folder, "stalled", f"no step for {STALL_SECONDS:.0f} s")


def _run(command: str, folder: RunFolder, status: str, reason: str) -> None:
    outcome = {"CRAM_RUN": str(folder.path), "CRAM_STATUS": status, "CRAM_REASON": reason}
    try:
        done = subprocess.run(  # noqa: S602 -- the user's own shell command; no record or recipe can set it
            command, shell=True, env=os.environ | outcome, timeout=_LONGEST, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        print(f"notify: the command could not run, or took longer than {_LONGEST:.0f} s", flush=True)
        return
    if done.returncode:
        print(f"notify: the command failed with exit status {done.returncode}", flush=True)
