"""Composer's engine, quiet at events to which nothing answers."""

from __future__ import annotations

import os

from composer.core import Callback, Engine, Event
from composer.core.engine import Traces

_DEBUG = "ENGINE_DEBUG"  # Composer's variable, for a line of its log at every visit


class QuietEngine(Engine):
    """Goes over algorithms and callbacks at an event only if one of them answers to it.

    A step has seven events, and six more for each microbatch, most of which nothing here answers to. Composer visits
    everything at each of them nevertheless, and puts together a line for its log that it hardly ever writes: a
    hundredth of the time of a small model's steps.

    A trainer makes its own engine, so this is made of one: `trainer.engine.__class__ = QuietEngine`.
    """

    def run_event(self, event: Event | str) -> Traces:
        """As Composer's; that the engine is open and a dataloader set is checked only where something answers."""
        event = Event(event)
        return super().run_event(event) if self._has_answer(event) else Traces()

    def _has_answer(self, event: Event) -> bool:
        if self.state.profiler is not None or _DEBUG in os.environ:
            return True
        if any(algorithm.match(event, self.state) for algorithm in self.state.algorithms):
            return True
        name = event.value
        kinds = map(type, self.state.callbacks)
        return any(_overrides(kind, "run_event") or _overrides(kind, name) for kind in kinds)

    def _debug_log(self, event: Event, msg: str) -> None:
        if _DEBUG in os.environ:
            super()._debug_log(event, msg)


def _overrides(kind: type[Callback], method: str) -> bool:
    return getattr(kind, method) is not getattr(Callback, method)
