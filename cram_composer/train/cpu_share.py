"""CPU time that other processes take from a run, and the number of threads that suits it.

Two threads that meet at hundreds of barriers per step wait for the scheduler at each of them if another process keeps
one of two cores busy. One thread is then faster than two.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from typing import Any

import psutil
import torch
from composer.core import Callback, State
from composer.loggers import Logger

from cram_composer.budget.trace import TraceStep

_SECONDS = 2.0  # between samples
_TOLERATED = 0.25  # cores of other processes that do not cost a thread
_QUIET_SAMPLES = 3  # in a row before a thread is added


def threads_beside(cores: int, others: float) -> int:
    """Return the number of threads for a run on `cores` cores of which other processes use `others` (a float)."""
    return max(1, min(cores, math.floor(cores - others + _TOLERATED)))


class CpuMeter:
    """Cores that other processes used between two calls, on the CPUs that this process may use."""

    def __init__(self) -> None:
        self.cpus = sorted(os.sched_getaffinity(0))
        self._is_nice = os.nice(0) > 0
        self._last = self._read()

    def others(self) -> tuple[float, float]:
        """Return the core seconds of other processes and the seconds of wall-clock since the last call.

        Processes of lower priority do not count, since they take nothing from this one.
        """
        before, self._last = self._last, self._read()
        busy, own, idle = (now - then for now, then in zip(self._last, before, strict=True))
        seconds = (busy + idle) / len(self.cpus)
        return max(0.0, busy - own), seconds

    def _read(self) -> tuple[float, float, float]:
        """Return busy seconds of the CPUs, those of this process and its children, and all other seconds."""
        busy = rest = 0.0
        times = psutil.cpu_times(percpu=True)
        for cpu in self.cpus:
            fields = times[cpu]
            counted = fields.user + fields.system + fields.irq + fields.softirq + fields.steal
            (counted, spare) = (counted + fields.nice, 0.0) if self._is_nice else (counted, fields.nice)
            busy += counted
            rest += fields.idle + fields.iowait + spare
        # Under the launcher, other ranks and their readers belong to the run too.
        root = psutil.Process(os.getppid() if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1 else None)
        own = 0.0
        for member in (root, *root.children(recursive=True)):
            try:
                spent = member.cpu_times()
            except psutil.Error:  # it has just ended
                continue
            # Time of children that have ended, such as compilers, is in their parent's.
            own += spent.user + spent.system + spent.children_user + spent.children_system
        return busy, own, rest


class CpuShare(Callback):
    """Measure the CPU share of other processes and, if `adapts`, set the number of threads between steps.

    Attributes:
        threads: of the current step.
    """

    def __init__(self, threads: int, adapts: bool, replay: list[TraceStep] | None) -> None:
        """Measure from the start of the loop.

        Args:
            threads: at the start, and the most.
            adapts: follow the load of the machine, or the trace in a replay.
            replay: the trace to follow.
        """
        self.threads = self._wanted = threads
        self._most = threads
        self._adapts = adapts
        self._replay = replay
        self._others = self._observed = 0.0  # core seconds
        self._quiet = 0  # samples in a row
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def share(self) -> float | None:
        """Share of the CPU time that other processes took, from 0 to 1; None if it was not measured."""
        return self._others / self._observed if self._observed > 0.0 else None

    def fit_start(self, state: State, logger: Logger) -> None:
        """Start the thread that samples the load."""
        if sys.platform == "linux":
            self._thread = threading.Thread(target=self._run, name="cpu-share", daemon=True)
            self._thread.start()

    def batch_start(self, state: State, logger: Logger) -> None:
        """Apply a new number of threads; it changes the last bits of sums, so the trace records it."""
        if not self._adapts:
            return
        wanted = self._wanted
        if self._replay is not None:
            wanted = self._replay[int(state.timestamp.batch)].threads or self._most
        if wanted != self.threads:
            self.threads = wanted
            torch.set_num_threads(wanted)

    def fit_end(self, state: State, logger: Logger) -> None:
        """Return to all threads for evaluation and export."""
        self.close(state, logger)
        if self.threads != self._most:
            torch.set_num_threads(self._most)

    def observe(self, others: float, seconds: float, cores: int) -> None:
        """Take a sample: `others` core seconds of other processes in `seconds` on `cores` cores."""
        self._others += others
        self._observed += seconds * cores
        fitting = min(self._most, threads_beside(cores, others / seconds))
        if fitting < self._wanted:
            if self._adapts and self._wanted == self._most:
                print(f"other processes use {others / seconds:.1f} of {cores} cores: {fitting} thread(s)", flush=True)
            self._wanted, self._quiet = fitting, 0
        elif fitting > self._wanted:
            self._quiet += 1
            if self._quiet >= _QUIET_SAMPLES:
                self._wanted, self._quiet = fitting, 0
        else:
            self._quiet = 0

    def _run(self) -> None:
        meter = CpuMeter()
        while not self._done.wait(_SECONDS):
            others, seconds = meter.others()
            if seconds > 0.0:
                self.observe(others, seconds, len(meter.cpus))

    def state_dict(self) -> dict[str, Any]:
        """Return the CPU time so far."""
        return {"others": self._others, "observed": self._observed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from a checkpoint."""
        self._others, self._observed = state["others"], state["observed"]

    def close(self, state: State, logger: Logger) -> None:
        """Stop the thread."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()
