"""Smoothing, thinning, throughput and pauses of curves."""

from __future__ import annotations

import numpy as np
import pytest

from cram_composer.analysis.figures.curves import ema, pauses, step_corners, thin, throughput
from cram_composer.analysis.runs.run import load_run


def test_the_average_is_unbiased_from_the_first_step() -> None:
    assert ema(np.full(20, 7.0), 5) == pytest.approx(7.0)
    ramp = ema(np.arange(400.0), 20)
    assert ramp[-1] == pytest.approx(399 - 19, abs=0.01)  # on a ramp, the average lags by its mean age


def test_the_average_passes_over_missing_values() -> None:
    values = np.array([np.nan, 2.0, np.nan, 4.0])
    smooth = ema(values, 1)
    assert np.isnan(smooth[0])
    assert smooth[1:].tolist() == [2.0, 2.0, 4.0]


def test_thinning_keeps_the_ends_of_the_range_and_the_order() -> None:
    rng = np.random.default_rng(0)
    x, y = np.arange(100_000.0), rng.random(100_000)
    y[54_321], y[54_330] = 50.0, -50.0
    few_x, few_y = thin(x, y, 800)
    assert len(few_x) <= 800
    assert (np.diff(few_x) > 0).all()
    assert {50.0, -50.0} <= set(few_y)
    same_x, same_y = thin(x[:10], np.where(x[:10] == 3, np.nan, x[:10]), 800)
    assert same_x.tolist() == same_y.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_stairs_are_the_corners_only() -> None:
    x, y = step_corners(np.arange(6.0), np.array([1, 1, 2, 2, 2, 1.0]), end=9.0)
    assert x.tolist() == [0, 2, 5, 9]
    assert y.tolist() == [1, 2, 1, 1]


def test_throughput_adds_up_to_the_tokens_and_the_waiting(make_run) -> None:
    run = load_run(make_run(resumed=True))
    edges, rates, stall = throughput(run, 96)
    width = edges[1] - edges[0]
    assert (rates * width).sum() == pytest.approx(run.get("tokens"))
    assert (stall * width).sum() == pytest.approx(run.trace["data_seconds"].sum())


def test_throughput_is_zero_where_time_was_lost(make_run) -> None:
    run = load_run(make_run(resumed=True))
    edges, rates, _ = throughput(run, 96)
    middle = 0.46 * 600.0  # between the checkpoint at 42 % and the kill at 50 %
    assert rates[np.searchsorted(edges, middle) - 1] == 0.0


def test_throughput_of_nothing_is_nothing(make_run) -> None:
    path = make_run(running=True)
    (path / "trace.jsonl").unlink()
    assert [len(part) for part in throughput(load_run(path), 96)] == [1, 0, 0]


def test_pauses_are_compilations_and_what_a_kill_cost(make_run) -> None:
    run = load_run(make_run(resumed=True))
    found = pauses(run)
    assert [pause.kind for pause in found] == ["compile", "compile", "lost", "compile"]
    lost = found[2]
    assert lost.end - lost.start == pytest.approx(run.get("ledger.inside.lost"))
    compiled = sum(pause.end - pause.start for pause in found if pause.kind == "compile")
    assert compiled == pytest.approx(run.get("ledger.inside.compile"), rel=0.05)


def test_slow_steps_are_no_compilation_where_none_was_recorded(make_run) -> None:
    run = load_run(make_run())
    run.record["ledger"]["inside"]["compile"] = 0.0
    assert pauses(run) == []


def test_a_restart_from_step_zero_shows_what_came_before_as_lost(make_run) -> None:
    run = load_run(make_run())
    run.trace["elapsed"] += 90.0
    run.record["ledger"]["inside"]["lost"] = 90.0
    assert (pauses(run)[0].kind, pauses(run)[0].start, pauses(run)[0].end) == ("lost", 0.0, 90.0)
