"""The phases of the ledger add up to the elapsed time."""

from __future__ import annotations

import pytest

from cram_composer.budget.ledger import Ledger


class FakeTime:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_phases_add_up_to_the_time_between_start_and_stop():
    time = FakeTime()
    ledger = Ledger(time)
    ledger.switch("data")
    time.now += 1
    assert ledger.switch("train") == 1
    time.now += 2
    with ledger.during("compile"):
        time.now += 4
    time.now += 8
    assert ledger.elapsed() == 15
    ledger.stop()
    time.now += 100
    ledger.stop()
    assert ledger.elapsed() == 15
    assert ledger.snapshot() == {"compile": 4, "train": 10, "data": 1, "eval": 0, "checkpoint": 0, "lost": 0}


def test_a_restored_ledger_continues_and_counts_lost_time():
    time = FakeTime()
    ledger = Ledger(time)
    ledger.restore({"train": 50.0, "eval": 5.0}, lost=7.0)
    ledger.switch("train")
    time.now += 3
    assert ledger.elapsed() == 65 and ledger.snapshot()["lost"] == 7 and ledger.snapshot()["train"] == 53


def test_outside_the_loop_nothing_counts_against_the_budget():
    time = FakeTime()
    ledger = Ledger(time)
    with ledger.outside_budget("export"):
        time.now += 5
    with ledger.during("checkpoint"):
        time.now += 5
    assert ledger.elapsed() == 0 and ledger.outside["export"] == 5


def test_a_phase_is_closed_when_its_block_fails():
    time = FakeTime()
    ledger = Ledger(time)
    ledger.switch("train")
    with pytest.raises(ValueError), ledger.during("eval"):
        time.now += 2
        raise ValueError
    assert ledger.open_phase == "train" and ledger.snapshot()["eval"] == 2
