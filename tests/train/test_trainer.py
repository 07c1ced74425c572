"""The low-overhead engine: the handlers it calls, their order, and its use in a run."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import composer.trainer.trainer as composer_trainer
import pytest
from composer.core import Algorithm, Callback, Engine, Event, State, Time, Timestamp
from composer.loggers import Logger, LoggerDestination

from cram_composer.train.trainer import LowOverheadEngine
from tests.conftest import REPOSITORY


class Named(Algorithm):
    """An algorithm that handles the events before and after a loss."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self._name = name
        self._calls = calls

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.BEFORE_LOSS, Event.AFTER_LOSS)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        self._calls.append(f"{self._name} {event.value}")


class Notes(Callback):
    """A callback that handles the events after a loss and at the end of a step."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def after_loss(self, state: State, logger: Logger) -> None:
        self._calls.append("loss")

    def batch_end(self, state: State, logger: Logger) -> None:
        self._calls.append("end")


class Writes(LoggerDestination):
    """A logger that handles the end of a step."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def batch_end(self, state: State, logger: Logger) -> None:
        self._calls.append("written")


class Idle(Callback):
    """A callback that handles no event."""


class Everything(Callback):
    """A callback that overrides `run_event` and so handles every event."""

    def __init__(self) -> None:
        self.seen: list[Event] = []

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        self.seen.append(event)


Make = Callable[..., LowOverheadEngine]


@pytest.fixture
def make_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Return a factory of engines whose state has one idle callback."""
    monkeypatch.delenv("ENGINE_DEBUG", raising=False)
    made: list[LowOverheadEngine] = []

    def make(profiler: Any = None) -> LowOverheadEngine:
        state = SimpleNamespace(
            profiler=profiler,
            algorithms=[],
            callbacks=[Idle()],
            dataloader=[],
            max_duration=Time(1, "ba"),
            timestamp=Timestamp(),
        )
        logger = SimpleNamespace(log_traces=lambda traces: None)
        made.append(LowOverheadEngine(cast(State, state), cast(Logger, logger)))
        return made[-1]

    yield make
    for engine in made:
        engine._is_closed = True


@pytest.fixture
def engine(make_engine: Make) -> Any:
    return make_engine()


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Return the list of events that Composer's own engine runs."""
    found: list[Event] = []
    original = Engine.run_event

    def run_event(self: Engine, event: Event) -> Any:
        found.append(event)
        return original(self, event)

    monkeypatch.setattr(Engine, "run_event", run_event)
    return found


def test_calls_and_their_order_equal_those_of_composers_engine(engine: Any, visits: list[Event]) -> None:
    """Algorithms run first, in reverse order at "after" events; loggers run after other callbacks."""
    calls: list[str] = []
    engine.state.algorithms = [Named("a", calls), Named("b", calls)]
    engine.state.callbacks = [Writes(calls), Notes(calls), Idle()]
    events = [Event.BEFORE_LOSS, Event.AFTER_LOSS, Event.BEFORE_BACKWARD, Event.BATCH_END, Event.BATCH_CHECKPOINT]
    for event in events:
        assert engine.run_event(event) == {}
    assert visits == []
    handled = calls.copy()
    assert handled == ["a before_loss", "b before_loss", "b after_loss", "a after_loss", "loss", "end", "written"]
    calls.clear()
    engine.enabled = False
    for event in events:
        engine.run_event(event)
    assert visits == events and calls == handled


def test_init_is_composers_event(engine: Any, visits: list[Event]) -> None:
    """At INIT, callbacks run before algorithms, and callbacks of another trainer are rejected."""
    engine.run_event(Event.INIT)
    assert visits == [Event.INIT]
    with pytest.raises(RuntimeError, match="open callback"):
        engine.run_event(Event.INIT)


def test_a_callback_added_later_that_handles_all_events(engine: Any) -> None:
    engine.run_event(Event.BEFORE_FORWARD)
    engine.state.callbacks.append(Everything())
    engine.run_event(Event.BEFORE_FORWARD)
    engine.run_event("after_forward")
    assert engine.state.callbacks[1].seen == [Event.BEFORE_FORWARD, Event.AFTER_FORWARD]
    engine.state.callbacks = engine.state.callbacks[:1]
    engine.run_event(Event.BEFORE_FORWARD)


def test_a_closed_engine_rejects_events(engine: Any) -> None:
    engine._is_closed = True
    with pytest.raises(RuntimeError, match="already closed"):
        engine.run_event(Event.BEFORE_FORWARD)


def test_a_profiler_sees_every_event(make_engine: Make, visits: list[Event]) -> None:
    profiler = MagicMock()
    engine = make_engine(profiler)
    engine.run_event(Event.BEFORE_FORWARD)
    engine.run_event(Event.AFTER_FORWARD)
    assert visits == [Event.BEFORE_FORWARD, Event.AFTER_FORWARD]
    profiler.marker.return_value.finish.assert_called_once()


def test_engine_debug_restores_composers_debug_lines(
    make_engine: Make, visits: list[Event], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG, "composer.core.engine")
    make_engine().run_event(Event.AFTER_LOSS)
    assert not caplog.messages
    monkeypatch.setenv("ENGINE_DEBUG", "1")
    make_engine().run_event(Event.BEFORE_FORWARD)
    assert visits[-1] == Event.BEFORE_FORWARD
    assert any("event=BEFORE_FORWARD" in line for line in caplog.messages)


BUILT = """
import copy
import sys
from pathlib import Path
import torch
from cram_composer.train import build as training
from cram_composer.device import choose_device
from cram_composer.runs.folder import RunFolder
from tests.tiny_runs import compose_tiny

composed = compose_tiny(Path(sys.argv[1]))
built = training.build(composed, choose_device(composed.config, 1), RunFolder(Path(sys.argv[2])), None)
print(type(built.trainer.engine).__name__, training.get_cpu_model.cache_info().misses)
print(torch.distributed.is_initialized())
spec = built.trainer._train_data_spec
microbatch = spec.microbatch_transforms(spec.split_batch(next(iter(built.batches.loader)), 8)[0])
print(copy.deepcopy(microbatch)["labels"] is microbatch["labels"])
"""


def test_composers_trainer_looks_up_its_engine_by_name() -> None:
    """On upgrade, check that the Trainer still constructs the name that LowOverheadTrainer patches."""
    assert version("mosaicml") == "0.32.1"
    assert composer_trainer.Engine is Engine


def test_a_run_uses_this_engine_and_looks_up_the_processor_once(tiny_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILT, str(tiny_data), str(tmp_path / "run")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-3:] == ["LowOverheadEngine 1", "False", "True"]
