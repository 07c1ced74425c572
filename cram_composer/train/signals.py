"""Signals that end a run with a checkpoint after the current step."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_LEAST_GRACE_SECONDS = 25.0
# submitit makes Slurm send SIGUSR2 90 s before the time limit of a job.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Signals:
    """Record the first of SIGTERM, SIGINT and SIGUSR2; exit if the step is not finished and saved in time.

    Args:
        on_abort: called before an exit without saving.

    Attributes:
        grace_seconds: returns the seconds allowed, of which at least 25 are given; set once steps are timed.
        received: number of the signal, 0 if none.
    """

    def __init__(self, on_abort: Callable[[], None]) -> None:
        self._on_abort = on_abort
        self._previous_handlers: dict[int, Any] = {}
        self._timer: threading.Timer | None = None
        self._allowed = _LEAST_GRACE_SECONDS
        self.grace_seconds: Callable[[], float] = lambda: _LEAST_GRACE_SECONDS
        self.received = 0

    def install(self) -> None:
        """Replace the handlers of these signals, including Composer's."""
        self._previous_handlers = {number: signal.signal(number, self._handle) for number in _SIGNALS}

    def uninstall(self) -> None:
        """Restore the previous handlers; after the loop nothing is left to save."""
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            # Ctrl-C reaches a process twice: from the terminal, and as SIGTERM from the launcher.
            return
        self.received = number
        print(f"\n{signal.Signals(number).name}: saving a checkpoint after this step", file=sys.stderr, flush=True)
        self._allowed = max(_LEAST_GRACE_SECONDS, self.grace_seconds())
        self._timer = threading.Timer(self._allowed, self._abort)
        self._timer.daemon = True
        self._timer.start()

    def _abort(self) -> None:
        text = f"the step was not finished and saved within {self._allowed:.0f} s; resume from the last checkpoint"
        print(text, file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):
            self._on_abort()
        os._exit(128 + self.received)
