"""The time that a run has to save after a signal."""

from __future__ import annotations

import signal
from typing import ClassVar

import pytest

from cram_composer.train import signals
from cram_composer.train.signals import Signals


class NoTimer:
    """Records the seconds of a timer."""

    seconds: ClassVar[list[float]] = []
    daemon = False

    def __init__(self, seconds: float, function: object) -> None:
        self.seconds.append(seconds)

    def start(self) -> None: ...

    def cancel(self) -> None: ...


@pytest.mark.parametrize("needed, allowed", [(0.0, 25.0), (3.0, 25.0), (66.0, 66.0)])
def test_slow_steps_get_the_time_of_two_and_a_save(needed: float, allowed: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(NoTimer, "seconds", [])
    monkeypatch.setattr(signals.threading, "Timer", NoTimer)
    received = Signals(lambda: None)
    received.grace_seconds = lambda: needed
    received.install()
    try:
        signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGTERM)  # later ones change nothing
    finally:
        received.uninstall()
    assert received.received == signal.SIGUSR2 and NoTimer.seconds == [allowed]
