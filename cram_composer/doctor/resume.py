"""A short run that a signal ends and the same command resumes."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cram_composer.config.formatting import duration
from cram_composer.data.loading.prepare import resolve_location
from cram_composer.data.manifest import MANIFEST
from cram_composer.doctor.checks import Check, CheckContext
from cram_composer.errors import CramError
from cram_composer.jobs.processes import last_line
from cram_composer.storage.files import read_json

_BUDGET = "1h"  # never spent
_STEPS = 4  # after which a signal is sent
_LIMIT_SECONDS = 300.0


def check_resume(context: CheckContext) -> Iterator[Check]:
    """Train a few steps on the run's data, send SIGTERM, resume."""
    root, remote = resolve_location(context.config.data)
    if remote is None and not (root / MANIFEST).is_file():
        yield Check(
            "resume", "skip", f"no data set in {root} yet; build it with: cram data build {context.config.data.build}"
        )
        return
    with tempfile.TemporaryDirectory(prefix="cram-doctor-") as folder:
        yield _interrupt_and_resume(context, Path(folder))


def _interrupt_and_resume(context: CheckContext, folder: Path) -> Check:
    train = context.config.train
    command = [
        sys.executable, "-m", "cram_composer.cli", "train", str(context.yaml), *context.overrides,
        f"budget={_BUDGET}", f"train.batch_size={train.microbatch}",
        f"train.device_train_microbatch_size={train.microbatch}", "algorithms.batch_size_ramp=null",
        "eval.interval=0", f"eval.final_rows={context.config.eval.batch_size}", "export.enabled=false",
        "logging={}", "notify=null", "runs_remote=null", "run_name=doctor", f"runs_dir={folder}",
    ]  # fmt: skip
    run = folder / "doctor"
    seconds = _train_until_signal(command, run, _STEPS)
    saved = read_json(run / "record.json")["steps"]
    _train_until_signal(command, run, saved + _STEPS)
    attempts = read_json(run / "record.json")["attempts"]
    if len(attempts) != 2 or attempts[1]["started_at_step"] != saved:
        raise CramError(f"the interrupted run resumed at step {attempts[-1]['started_at_step']}, saved was {saved}")
    line = f"SIGTERM saved step {saved} in {duration(seconds)}, and the same command went on from there"
    return Check("resume", "pass", line, {"step": saved, "seconds": seconds})


def _train_until_signal(command: list[str], run: Path, steps: int) -> float:
    """Train until the run has more than `steps` steps, send SIGTERM, and return the seconds until it has ended."""
    log = run.parent / "log.txt"
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)  # noqa: S603 - without a shell
        try:
            _wait_for_steps(run / "trace.jsonl", process, steps, log)
            sent = time.perf_counter()
            process.send_signal(signal.SIGTERM)
            status = process.wait(_LIMIT_SECONDS)
        finally:
            process.kill()
            process.wait()
    if status != 128 + signal.SIGTERM:
        raise CramError(f"a run ended by SIGTERM has exit status {status}: {_last_line(log)}")
    return time.perf_counter() - sent


def _wait_for_steps(trace: Path, process: subprocess.Popen[bytes], steps: int, log: Path) -> None:
    until = time.monotonic() + _LIMIT_SECONDS
    while time.monotonic() < until:
        if trace.is_file() and sum(1 for _ in trace.open("rb")) > steps:
            return
        if process.poll() is not None:
            raise CramError(f"a run ended before step {steps}: {_last_line(log)}")
        time.sleep(0.05)
    raise CramError(f"a run did not reach step {steps} in {_LIMIT_SECONDS:.0f} s: {_last_line(log)}")


def _last_line(log: Path) -> str:
    return last_line(log.read_text(errors="replace"), "no output")
