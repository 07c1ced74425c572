"""Seconds per phase. One phase is open at a time, so the phases add up to the time between start and stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

INSIDE = ("compile", "train", "data", "eval", "checkpoint", "lost")
OUTSIDE = ("setup", "data_build", "final_checkpoint", "final_eval", "export", "upload")


class Ledger:
    """Account for time inside the budget, while the loop runs, and outside it, before and after."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._phase: str | None = None
        self._since = 0.0
        self._lock = threading.RLock()  # the heartbeat thread reads while the loop writes
        self.inside = dict.fromkeys(INSIDE, 0.0)
        self.outside = dict.fromkeys(OUTSIDE, 0.0)

    def restore(self, inside: Mapping[str, float], lost: float) -> None:
        """Continue from the phases of a checkpoint; `lost` seconds were spent after it."""
        with self._lock:
            self.inside = dict.fromkeys(INSIDE, 0.0) | dict(inside)
            self.inside["lost"] += lost

    def switch(self, phase: str) -> float:
        """Close the open phase and open `phase` (one of INSIDE); return the duration of the closed one in seconds."""
        with self._lock:
            now = self._now()
            spent = now - self._since if self._phase is not None else 0.0
            if self._phase is not None:
                self.inside[self._phase] += spent
            self._phase, self._since = phase, now
            return spent

    def stop(self) -> None:
        """Close the open phase: time no longer counts against the budget."""
        if self._phase is not None:
            self.switch(self._phase)
            self._phase = None

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count a block as `phase`, then return to the open phase; no effect if none is open."""
        before = self._phase
        if before is None:
            yield
            return
        self.switch(phase)
        try:
            yield
        finally:
            self.switch(before)

    @contextmanager
    def outside_budget(self, phase: str) -> Iterator[None]:
        """Count a block as `phase`, one of OUTSIDE."""
        start = self._now()
        try:
            yield
        finally:
            self.outside[phase] += self._now() - start

    @property
    def open_phase(self) -> str | None:
        """Open phase, None outside the loop."""
        return self._phase

    def snapshot(self) -> dict[str, float]:
        """Return the seconds per phase inside the budget, with the open phase up to now."""
        with self._lock:
            seconds = dict(self.inside)
            if self._phase is not None:
                seconds[self._phase] += self._now() - self._since
            return seconds

    def elapsed(self) -> float:
        """Return the seconds of the budget spent, the sum of the phases inside it."""
        return sum(self.snapshot().values())
