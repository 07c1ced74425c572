"""The engine calls what answers to an event, and nothing else; a run has it, and is alone with itself."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import pytest
from composer.core import Algorithm, Callback, Engine, Event, State, Time, Timestamp
from composer.loggers import Logger, LoggerDestination

from cram_composer.train.trainer import QuietEngine
from tests.conftest import REPOSITORY


class Named(Algorithm):
    """Answers before and after a loss."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self._name = name
        self._calls = calls

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.BEFORE_LOSS, Event.AFTER_LOSS)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        self._calls.append(f"{self._name} {event.value}")


class Notes(Callback):
    """Answers after a loss, and at the end of a step."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def after_loss(self, state: State, logger: Logger) -> None:
        self._calls.append("loss")

    def batch_end(self, state: State, logger: Logger) -> None:
        self._calls.append("end")


class Writes(LoggerDestination):
    """A logger that answers at the end of a step."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def batch_end(self, state: State, logger: Logger) -> None:
        self._calls.append("written")


class SaysNothing(Callback):
    """Answers to nothing."""


class Everything(Callback):
    """Takes all events by itself."""

    def __init__(self) -> None:
        self.seen: list[Event] = []

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        self.seen.append(event)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.delenv("ENGINE_DEBUG", raising=False)
    state = SimpleNamespace(
        profiler=None,
        algorithms=[],
        callbacks=[SaysNothing()],
        dataloader=[],
        max_duration=Time(1, "ba"),
        timestamp=Timestamp(),
    )
    made = Engine(cast(State, state), cast(Logger, SimpleNamespace(log_traces=lambda traces: None)))
    QuietEngine.replace(made)
    yield made
    made._is_closed = True


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Events at which Composer's own engine goes over everything."""
    found: list[Event] = []
    original = Engine.run_event

    def run_event(self: Engine, event: Event) -> Any:
        found.append(event)
        return original(self, event)

    monkeypatch.setattr(Engine, "run_event", run_event)
    return found


def test_calls_are_those_of_composers_engine_and_in_its_order(engine: Any, visits: list[Event]) -> None:
    """Algorithms first, the last of them first after what came before; loggers behind other callbacks."""
    calls: list[str] = []
    engine.state.algorithms = [Named("a", calls), Named("b", calls)]
    engine.state.callbacks = [Writes(calls), Notes(calls), SaysNothing()]
    events = [Event.BEFORE_LOSS, Event.AFTER_LOSS, Event.BEFORE_BACKWARD, Event.BATCH_END, Event.BATCH_CHECKPOINT]
    for event in events:
        assert engine.run_event(event) == {}
    assert visits == []
    quiet = calls.copy()
    assert quiet == ["a before_loss", "b before_loss", "b after_loss", "a after_loss", "loss", "end", "written"]
    calls.clear()
    engine.__class__ = Engine
    for event in events:
        engine.run_event(event)
    assert visits == events and calls == quiet


def test_a_callback_that_comes_later_and_takes_all_events(engine: Any) -> None:
    engine.run_event(Event.BEFORE_FORWARD)
    engine.state.callbacks.append(Everything())
    engine.run_event(Event.BEFORE_FORWARD)
    engine.run_event("after_forward")
    assert engine.state.callbacks[1].seen == [Event.BEFORE_FORWARD, Event.AFTER_FORWARD]
    engine.state.callbacks = engine.state.callbacks[:1]
    engine.run_event(Event.BEFORE_FORWARD)


def test_a_closed_engine_takes_no_event(engine: Any) -> None:
    engine._is_closed = True
    with pytest.raises(RuntimeError, match="already closed"):
        engine.run_event(Event.BEFORE_FORWARD)


def test_a_profiler_sees_every_event(engine: Any, visits: list[Event]) -> None:
    engine.state.profiler = MagicMock()
    QuietEngine.replace(engine)
    engine.run_event(Event.BEFORE_FORWARD)
    engine.run_event(Event.AFTER_FORWARD)
    assert visits == [Event.BEFORE_FORWARD, Event.AFTER_FORWARD]
    engine.state.profiler.marker.return_value.finish.assert_called_once()


def test_composers_lines_of_its_log_are_there_when_asked_for(
    engine: Any, visits: list[Event], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG, "composer.core.engine")
    engine.run_event(Event.AFTER_LOSS)
    assert not caplog.messages
    monkeypatch.setenv("ENGINE_DEBUG", "1")
    QuietEngine.replace(engine)
    engine.run_event(Event.BEFORE_FORWARD)
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
print(torch.distributed.is_initialized(), built.trainer.state.fsdp_enabled)
microbatch = built.trainer._train_data_spec.microbatch_transforms(next(iter(built.loader)))
print(copy.deepcopy(microbatch)["labels"] is microbatch["labels"])
"""


def test_a_run_has_this_engine_and_asks_once_for_the_processor(tiny_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILT, str(tiny_data), str(tmp_path / "run")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-3:] == ["QuietEngine 1", "False False", "True"]
