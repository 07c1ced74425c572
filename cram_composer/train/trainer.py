"""Composer's trainer, without what takes time in every step of a run and changes nothing in it."""

from __future__ import annotations

import datetime
import os
from functools import cached_property
from typing import Any

from composer import Trainer
from composer.core import Callback, Engine, Event, State
from composer.core.engine import Traces
from composer.loggers import LoggerDestination
from composer.utils import dist

_DEBUG = "ENGINE_DEBUG"  # Composer's variable, for a line of its log at every visit


class QuietTrainer(Trainer):
    """As Composer's, whose arguments it takes."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.state.__class__ = QuietState
        QuietEngine.replace(self.engine)

    def _accumulate_time_across_ranks(
        self, num_samples: int | float, num_tokens: int, batch_time: datetime.timedelta
    ) -> tuple[int, int, datetime.timedelta]:
        """Sums over the ranks, and the seconds of the first: by way of tensors only where there are several."""
        if dist.get_world_size() == 1:
            return int(num_samples), num_tokens, batch_time
        return super()._accumulate_time_across_ranks(num_samples, num_tokens, batch_time)


class QuietState(State):
    """Looks only once through all modules of the model for one that is sharded, not after every step."""

    @cached_property
    def fsdp_enabled(self) -> bool:
        """Indicates if FSDP is enabled."""
        return super().fsdp_enabled


class QuietEngine(Engine):
    """Goes at an event to the algorithms and callbacks that answer to it, and past all others.

    A step has seven events, and six more for each microbatch, most of which nothing here answers to. Composer visits
    everything at each of them nevertheless, puts together a line for its log that it hardly ever writes, and notes for
    the loggers which algorithms ran: two hundredths of the time of a small model's steps.

    With a profiler, or where Composer's log asks for its lines, it is Composer's engine.

    A trainer makes its own engine, so this is made of one: `QuietEngine.replace(trainer.engine)`.
    """

    _callbacks: list[Callback]  # those that were there when `_answering` was made
    _answering: dict[Event, list[Callback]]
    _is_quiet: bool

    @classmethod
    def replace(cls, engine: Engine) -> None:
        """Make an engine one of these."""
        engine.__class__ = cls
        assert isinstance(engine, cls)
        engine._callbacks, engine._answering = [], {}
        engine._is_quiet = engine.state.profiler is None and _DEBUG not in os.environ

    def run_event(self, event: Event | str) -> Traces:
        """As Composer's, and in its order; traces are empty."""
        if not self._is_quiet or self._is_closed:
            return super().run_event(event)
        event, state = Event(event), self.state
        algorithms = [algorithm for algorithm in state.algorithms if algorithm.match(event, state)]
        if algorithms:
            for algorithm in self._compile(algorithms, event):
                algorithm.apply(event, state, self.logger)
        if self._callbacks != state.callbacks:
            self._callbacks, self._answering = list(state.callbacks), {}
        answering = self._answering.get(event)
        if answering is None:
            answering = self._answering[event] = _in_order(self._callbacks, event.value)
        for callback in answering:
            callback.run_event(event, state, self.logger)
        return {}


def _in_order(callbacks: list[Callback], event: str) -> list[Callback]:
    """Those that answer; loggers last, so that they write what the others hand them."""
    answering = [callback for callback in callbacks if _overrides(callback, "run_event") or _overrides(callback, event)]
    return sorted(answering, key=lambda callback: isinstance(callback, LoggerDestination))


def _overrides(callback: Callback, method: str) -> bool:
    return getattr(type(callback), method) is not getattr(Callback, method)
