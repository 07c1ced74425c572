"""Jobs in worker processes of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

from cram_composer.errors import CramError
from cram_composer.jobs.processes import quiet_libraries
from cram_composer.jobs.runner import POLL_SECONDS, Call, JobResult, Runner

# Workers run one job after another and are forked from a server that has imported their libraries once.
# submitit.LocalExecutor would start an interpreter per job, which imports torch for tasks of milliseconds, run all jobs
# at once, and let them outlive their parent. Forking this process is unsafe, because its libraries start threads.
_START_METHOD = "forkserver" if sys.platform == "linux" else "spawn"
_CANCEL_SECONDS = 60.0  # a training run saves a checkpoint in half of that


@dataclass(frozen=True)
class Slot:
    """Resources for one job at a time: its GPU (None: all GPUs of this process) and its CPU cores (empty: all)."""

    gpu: str | None = None
    cores: tuple[int, ...] = ()


def visible_gpus(count: int) -> list[str]:
    """Return the names, for CUDA_VISIBLE_DEVICES, of the `count` GPUs that this process sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(count)]


class LocalRunner(Runner):
    """Runs one job per slot at a time, in a worker process that is reused for later jobs."""

    def __init__(self, slots: Sequence[Slot], preload: Sequence[str] = ()) -> None:
        self._slots = slots
        self._preload = list(preload)  # modules to import once for all workers
        self._workers: dict[int, _Worker] = {}  # by slot
        self._jobs: dict[int, int] = {}  # running, by slot

    def __enter__(self) -> Runner:
        if self._preload and _START_METHOD == "forkserver":
            forkserver.set_forkserver_preload(self._preload)
            forkserver.ensure_running()  # imports while this process prepares the jobs
        return self

    def running(self) -> dict[int, float]:
        return {job: self._workers[slot].progress.value for slot, job in self._jobs.items()}

    def start(self, ready: Mapping[int, Call]) -> list[int]:
        idle = [slot for slot in range(len(self._slots)) if slot not in self._jobs]
        started = dict(zip(idle, ready, strict=False))
        for slot, job in started.items():
            if slot not in self._workers or self._workers[slot].connection.poll():  # killed while idle
                self._workers[slot] = _Worker(self._slots[slot])
            self._workers[slot].progress.value = 0.0
            with contextlib.suppress(OSError):  # killed since the poll: its job is reported as killed
                self._workers[slot].connection.send(ready[job])
        self._jobs.update(started)
        return list(started.values())

    def finished(self) -> list[JobResult]:
        handles: dict[Any, int] = {}  # two per worker: a child of a killed job may keep the connection open
        for slot in self._jobs:
            handles |= dict.fromkeys([self._workers[slot].connection, self._workers[slot].process.sentinel], slot)
        return [self._result(slot) for slot in {handles[handle] for handle in wait(list(handles), POLL_SECONDS)}]

    def _result(self, slot: int) -> JobResult:
        job = self._jobs.pop(slot)
        with contextlib.suppress(EOFError, OSError):
            if self._workers[slot].connection.poll():
                return JobResult(job, *self._workers[slot].connection.recv())
        del self._workers[slot]
        return JobResult(job, error="its process was killed (out of memory?)", killed=True)

    def cancel(self) -> None:
        for slot, worker in self._workers.items():
            worker.connection.close()  # which ends an idle worker
            if slot in self._jobs:
                worker.process.terminate()
        for worker in self._workers.values():
            worker.process.join(_CANCEL_SECONDS)
            worker.process.kill()
        self._workers, self._jobs = {}, {}


class _Worker:
    """A process that runs jobs, its connection, and the progress of its job."""

    def __init__(self, slot: Slot) -> None:
        context: Any = get_context(_START_METHOD)
        self.connection, theirs = context.Pipe()
        self.progress = context.RawValue("d", 0.0)
        environment = {**os.environ, **({} if slot.gpu is None else {"CUDA_VISIBLE_DEVICES": slot.gpu})}
        self.process = context.Process(target=_serve, args=(theirs, environment, slot.cores, self.progress))
        self.process.start()
        theirs.close()  # so that the connection ends with the process


_progress: Any = None  # in a worker: the progress of its job, shared with the parent


def report_progress(progress: float) -> None:
    """Report the progress of the current job, in [0, 1]; does nothing outside a local worker."""
    if _progress is not None:
        _progress.value = progress


def _serve(connection: Connection, environment: dict[str, str], cores: tuple[int, ...], progress: Any) -> None:
    """Run jobs in a worker until the parent closes the connection."""
    global _progress
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent handles it
    os.environ.update(environment)  # a forked worker starts with the environment of the server, which may be outdated
    if cores:
        os.sched_setaffinity(0, cores)
    _progress = progress
    quiet_libraries()
    with contextlib.suppress(EOFError, OSError):
        while True:
            connection.send(_outcome(connection.recv()))


def _end_with_parent() -> None:
    """Wait until the parent has ended, even by a kill, and end this process.

    A signal from Linux (see `end_with_parent`) would never come: to Linux, the parent is the server that forked the
    worker, which outlives it.
    """
    parent = parent_process()
    assert parent is not None
    parent.join()
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _outcome(call: Call) -> tuple[Any, str]:
    try:
        return call(), ""
    except CramError as error:
        return None, str(error)
    except Exception as error:
        return None, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
