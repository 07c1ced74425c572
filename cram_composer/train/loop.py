"""Train until the budget is spent, then finish."""

from __future__ import annotations

import contextlib
import signal
import time
from typing import Any

from composer.utils import dist

from cram_composer.budget.energy import EnergyMeter
from cram_composer.config import Composed
from cram_composer.data.loading.block_reader import ReaderKilledError, reader_killed
from cram_composer.device import DeviceChoice, out_of_memory
from cram_composer.errors import CramError, describe_error
from cram_composer.runs.folder import FINISHED, RunFolder
from cram_composer.scaleout.peer_failure import peer_failure
from cram_composer.storage.files import naming_full_disk
from cram_composer.train.attempts import Attempt
from cram_composer.train.build import build
from cram_composer.train.finish import finish
from cram_composer.train.microbatch import smaller_microbatch
from cram_composer.train.record import write_record
from cram_composer.train.session import Session

_UPLOAD_SECONDS = 60.0  # limit of the upload after a signal


def run(
    composed: Composed, device: DeviceChoice, folder: RunFolder, previous: dict[str, Any] | None, started: float
) -> int:
    """Train to the end of the budget and finish.

    Args:
        composed: the configuration.
        device: the device of this process.
        folder: locked by this process group.
        previous: the record of earlier attempts, None for a new run.
        started: time.monotonic() at the start of this attempt.

    Returns:
        The exit status of the process.
    """
    try:
        session = build(composed, device, folder, previous)
    except Exception as error:
        if (failure := out_of_memory(error)) is not None:
            raise failure from error
        raise
    earlier = _end_of_loop(session)
    attempt = Attempt(session)
    session.ledger.outside["setup"] += time.monotonic() - started - session.data.build_seconds
    write_record(session, "running")
    _print_start(session)
    energy = EnergyMeter(session.trainer.state.device)
    energy.start()
    attempt.start()
    session.callbacks.clock.skips_loop = earlier is not None
    try:
        with naming_full_disk(folder.path):
            session.trainer.fit()
    except BaseException as error:
        failure = reader_killed(error) or peer_failure(error) or _out_of_memory(session, error)
        status = "interrupted" if isinstance(failure, ReaderKilledError) else "failed"
        attempt.close(status)
        with contextlib.suppress(OSError):  # of a full disk
            write_record(session, status, describe_error(failure or error))
        if failure is not None:
            raise failure from error
        raise
    status, reason = _outcome(session)
    if earlier is not None and status != "interrupted":
        status, reason = earlier
    attempt.close(status, reason, saved=earlier is not None or status == "interrupted")
    session.callbacks.signals.uninstall()
    measured = energy.stop()
    session.energy = measured if earlier is None else (previous or {}).get("energy")
    if status == "interrupted":
        return _interrupt(session, reason)
    return finish(session, status, reason, saved=earlier is not None)


def _out_of_memory(session: Session, error: BaseException) -> CramError | None:
    if out_of_memory(error) is None:
        return None
    return out_of_memory(error, smaller_microbatch(session.config, session.microbatch))


def _print_start(session: Session) -> None:
    if dist.get_global_rank() == 0:
        kernels = ", ".join(f"{name} {value}" for name, value in session.kernels().items())
        for key, values in session.changes.items():
            print(f"{session.folder.path}: {key} changed from {values['before']!r} to {values['after']!r}")
        parameters = f"{session.setup.parameters:,} parameters on {session.device.name}"
        print(f"{session.folder.path}: {parameters}; {kernels}", flush=True)


def _end_of_loop(session: Session) -> tuple[str, str | None] | None:
    """Return how the loop of an earlier attempt ended, if nothing is left to train but the run did not finish."""
    step = int(session.trainer.state.timestamp.batch)
    for attempt in session.attempts:
        if attempt.get("ended_at_step") == step and attempt["reason"] in FINISHED:
            return attempt["reason"], attempt.get("cause")
    return None


def _outcome(session: Session) -> tuple[str, str | None]:
    """Return status and reason of a loop that ended without an error."""
    callbacks = session.callbacks
    if callbacks.clock.signal:
        return "interrupted", signal.Signals(callbacks.clock.signal).name
    if callbacks.early_stop is not None and callbacks.early_stop.reason is not None:
        return "stopped-early", callbacks.early_stop.reason
    return "finished", None


def _interrupt(session: Session, reason: str | None) -> int:
    """Record that a signal ended the run, and upload the saved checkpoint; return the exit status."""
    write_record(session, "interrupted", reason)
    if dist.get_global_rank() == 0:
        print(f"{reason}: saved at step {int(session.trainer.state.timestamp.batch)}; run the same command to resume")
    if session.callbacks.mirror is not None:
        session.callbacks.mirror.flush(_UPLOAD_SECONDS)
    return 128 + session.callbacks.clock.signal
