"""Calls of the jobs in the tests, in a separate module that worker processes can import."""

from __future__ import annotations

import os
import signal
import time
import warnings
from pathlib import Path
from typing import Any

from cram_composer.errors import CramError
from cram_composer.jobs.local import report_progress


def sleep(seconds: float, value: Any = None) -> Any:
    time.sleep(seconds)
    return value


def process_id() -> int:
    return os.getpid()


def surroundings(name: str) -> tuple[str | None, list[int]]:
    """Return an environment variable and the CPU cores of this process."""
    return os.environ.get(name), sorted(os.sched_getaffinity(0))


def fail(message: str) -> None:
    raise CramError(message)


def crash() -> None:
    raise ValueError("two\nlines")


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_itself_and_leave_a_fork(path: Path) -> None:
    if os.fork() == 0:
        wait_for(path)
        os._exit(0)
    kill_itself()


def wait_for(path: Path) -> None:
    """Write the process id to `path`.waiting, and wait for `path`."""
    path.with_suffix(".waiting").write_text(str(os.getpid()))
    while not path.exists():
        time.sleep(0.02)


def report(progress: float, until: Path) -> None:
    report_progress(progress)
    wait_for(until)


def append(path: Path, word: str) -> str:
    with open(path, "a") as file:
        file.write(f"{word} ")
    return path.read_text()


def warnings_of_norms() -> int:
    """Return the number of warnings of a norm with fp32 weights on bf16."""
    import torch

    with warnings.catch_warnings(record=True) as found:
        torch.nn.functional.rms_norm(torch.ones(2, 4, dtype=torch.bfloat16), (4,), torch.ones(4))
    return len(found)
