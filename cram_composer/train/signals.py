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

_GRACE_SECONDS = 25.0
# submitit makes Slurm send SIGUSR2 90 s before the time limit of a job.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Signals:
    """Record the first of SIGTERM, SIGINT and SIGUSR2; exit if the step is not finished and saved within 25 s.

    Args:
        on_abort: called before an exit without saving.

    Attributes:
        received: number of the signal, 0 if none.
    """

    def __init__(self, on_abort: Callable[[], None]) -> None:
        self._on_abort = on_abort
        self._previous_handlers: dict[int, Any] = {}
        self._timer: threading.Timer | None = None
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
        self._timer = threading.Timer(_GRACE_SECONDS, self._abort)
        self._timer.daemon = True
        self._timer.start()

    def _abort(self) -> None:
        text = f"the step was not finished and saved within {_GRACE_SECONDS:.0f} s; resume from the last checkpoint"
        print(text, file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):
            self._on_abort()
        os._exit(128 + self.received)
