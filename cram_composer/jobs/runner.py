"""Interface of job runners, and their shared loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

POLL_SECONDS = 1.0

Call = Callable[[], Any]  # picklable, such as a functools.partial of a module's function


@dataclass(frozen=True)
class JobResult:
    """Outcome of the job at position `index` in the calls of `Runner.run`.

    `value` is the result of the call. `error` is a one-line reason for a failure, empty on success. `killed` is True if
    the process ended without an outcome.
    """

    index: int
    value: Any = None
    error: str = ""
    killed: bool = False


class Runner(ABC):
    """Runs calls in other processes. Leaving its context cancels the jobs that are still running."""

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cancel()

    def run(
        self,
        calls: Sequence[Call],
        *,
        after: Mapping[int, int] | None = None,
        on_poll: Callable[[Mapping[int, float]], None] = lambda running: None,
        fail_fast: bool = False,
    ) -> Iterator[JobResult]:
        """Run all calls and yield their results as they finish; a job that fails or is killed does not affect others.

        Args:
            calls: started in this order.
            after: position of a call -> position of the call that must finish before it starts.
            on_poll: called every second with the running jobs and their reported progress in [0, 1].
            fail_fast: start no more jobs after a failure.
        """
        after = after or {}
        waiting = dict(enumerate(calls))
        while waiting or self.running():
            unfinished = {*waiting, *self.running()}
            ready = {index: call for index, call in waiting.items() if after.get(index) not in unfinished}
            for index in self.start(ready):
                del waiting[index]
            on_poll(self.running())
            for result in self.finished():
                if result.error and fail_fast:
                    waiting.clear()
                yield result
        on_poll({})

    @abstractmethod
    def running(self) -> dict[int, float]:
        """Return the running jobs with their progress in [0, 1]."""

    @abstractmethod
    def start(self, ready: Mapping[int, Call]) -> list[int]:
        """Start as many of the jobs as there are free slots, in order; return their positions."""

    @abstractmethod
    def finished(self) -> list[JobResult]:
        """Return newly finished jobs, after at most POLL_SECONDS."""

    @abstractmethod
    def cancel(self) -> None:
        """End the running jobs and wait for them."""
