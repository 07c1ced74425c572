"""Child processes: available CPU cores, ending with the parent, and running commands."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cram_composer.errors import CramError

ENDS_WITH_PARENT = "CRAM_ENDS_WITH_PARENT"  # environment variable of a command: process id of the parent
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def end_with_parent(number: int) -> None:
    """Have Linux send signal `number` to this process when the thread that started it ends, even by a kill.

    Does nothing on other systems.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def quiet_libraries() -> None:
    """Keep libraries from warning about a missing GPU on a machine that has none, and about what is intended."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # transformers imports DeepSpeed for every export
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    # Norms with fp32 weights on a bf16 residual stream: torch has no fused kernel, and a compiled layer needs none.
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")


def available_cores() -> tuple[int, ...]:
    """Return the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def run_module(
    module: str, settings: Mapping[str, Any], environment: Mapping[str, str], *options: str
) -> subprocess.CompletedProcess[str]:
    """Run a module of this package on the path of a JSON file with `settings`; it ends with this process."""
    with tempfile.TemporaryDirectory(prefix="cram-") as folder:
        path = Path(folder) / "settings.json"
        path.write_text(json.dumps(settings))
        return subprocess.run(  # noqa: S603 - this interpreter, without a shell
            [sys.executable, "-m", module, *options, str(path)],
            env=environment,
            capture_output=True,
            text=True,
            preexec_fn=lambda: end_with_parent(signal.SIGKILL),
        )


def last_error(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line of a failed process's errors, or its exit status."""
    return last_line(done.stderr, f"exit status {done.returncode}").removeprefix("error: ")


def last_line(output: str, otherwise: str) -> str:
    """Return the last line that is not blank, or `otherwise`."""
    lines = output.strip().splitlines() or [otherwise]
    return lines[-1]


def run_command(command: Sequence[str], log: Path) -> None:
    """Run a command and append its output to a log; forward SIGTERM to it.

    The command finds the id of this process in the environment variable CRAM_ENDS_WITH_PARENT.

    Raises:
        CramError: the command failed; the message quotes the last line of the log.
    """
    environment = {**os.environ, ENDS_WITH_PARENT: str(os.getpid())}
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(log, "ab") as output,
        subprocess.Popen(  # noqa: S603 - this project's own commands, without a shell
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        ) as process,
    ):
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        status = process.wait()
        signal.signal(signal.SIGTERM, before)
    if status != 0:
        last = last_line(log.read_text(errors="replace"), "no output")
        ending = f"signal {-status}" if status < 0 else f"status {status}"
        raise CramError(f"ended with {ending}: {last.removeprefix('error: ')[:300]}")
