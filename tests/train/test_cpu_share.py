"""The CPU share of other processes, and the number of threads that follows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cram_composer.budget.trace import TraceStep
from cram_composer.device import choose_device
from cram_composer.train.cpu_share import CpuMeter, CpuShare, threads_beside
from tests.tiny_runs import TinyRuns, compose_tiny, losses, record

BUSY = "while True: pass"


@pytest.mark.parametrize(
    ("cores", "others", "threads"),
    [(2, 0.0, 2), (2, 0.2, 2), (2, 0.67, 1), (2, 1.9, 1), (2, 9.0, 1), (8, 0.5, 7), (8, 3.1, 5), (1, 0.0, 1)],
)
def test_threads_leave_cores_that_others_use(cores: int, others: float, threads: int) -> None:
    assert threads_beside(cores, others) == threads


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_meter_counts_other_processes_and_not_its_own() -> None:
    meter = CpuMeter()
    child = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        time.sleep(0.3)
        meter.others()
        ends = time.monotonic() + 1.0
        while time.monotonic() < ends:
            pass
        others, seconds = meter.others()
        assert seconds == pytest.approx(1.0, abs=0.3)
        own = others
    finally:
        child.kill()
        child.wait()
    # A process that is no child of this one.
    foreign = subprocess.run(
        ["/bin/sh", "-c", f'setsid "$0" -c "{BUSY}" >/dev/null 2>&1 & echo $!', sys.executable],
        capture_output=True,
        text=True,
        check=True,
    )
    try:
        time.sleep(0.3)
        meter.others()
        time.sleep(1.0)
        others, _ = meter.others()
        assert others > own - 0.5 and others > 0.2
    finally:
        os.kill(int(foreign.stdout), 9)


def make(adapts: bool = True, replay: list[TraceStep] | None = None) -> CpuShare:
    return CpuShare(4, adapts, replay)


def step(share: CpuShare, number: int = 0) -> int:
    state: Any = SimpleNamespace(timestamp=SimpleNamespace(batch=number))
    share.batch_start(state, None)
    return share.threads


@pytest.fixture(autouse=True)
def _threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_threads_fall_at_once_and_rise_after_three_quiet_samples(capsys: pytest.CaptureFixture[str]) -> None:
    share, seen = make(), []
    for others in (0.0, 4.0, 0.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0):
        share.observe(others, 2.0, cores=4)
        seen.append(step(share))
    assert seen == [4, 2, 2, 2, 2, 2, 2, 4, 4]
    assert torch.get_num_threads() == 4
    assert capsys.readouterr().out == "other processes use 2.0 of 4 cores: 2 thread(s)\n"
    assert share.share == pytest.approx(8.0 / (9 * 2.0 * 4))


def test_a_fixed_number_stays_and_the_share_survives_a_resume() -> None:
    share, resumed = make(adapts=False), make(adapts=False)
    share.observe(4.0, 2.0, cores=4)
    assert step(share) == 4
    resumed.load_state_dict(share.state_dict())
    resumed.observe(0.0, 2.0, cores=4)
    assert resumed.share == 0.25
    assert make().share is None


def test_a_replay_follows_its_trace() -> None:
    trace: Any = [SimpleNamespace(threads=threads) for threads in (4, 1, 3, None)]
    share = make(replay=trace)
    share.observe(8.0, 2.0, cores=4)
    assert [step(share, number) for number in range(4)] == [4, 1, 3, 4]


@pytest.mark.parametrize(
    ("overrides", "adapts"),
    [
        (["budget=1h", "train.threads=auto"], True),
        (["budget={steps: 3}", "train.threads=auto"], False),
        (["budget=1h", "train.threads=2"], False),
    ],
)
def test_only_a_clock_and_auto_adapt(tmp_path: Path, monkeypatch, overrides: list[str], adapts: bool) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    config = compose_tiny(tmp_path, *overrides).config
    assert choose_device(config, 1).adapts_threads == adapts
    assert not choose_device(config, 2).adapts_threads


def test_a_run_records_threads_and_share_and_its_replay_repeats_them(tiny_run: TinyRuns) -> None:
    run = tiny_run("shared", "budget=2s", "train.threads=auto")
    steps = [json.loads(line) for line in (run / "trace.jsonl").open()]
    assert {entry["threads"] for entry in steps} <= set(range(1, len(os.sched_getaffinity(0)) + 1))
    changed = [json.dumps(entry | {"threads": 1 + number % 2}) + "\n" for number, entry in enumerate(steps)]
    (run / "trace.jsonl").write_text("".join(changed))
    again = tiny_run("shared-again", f"budget={{replay: {run}}}", "train.threads=auto")
    repeated = [json.loads(line)["threads"] for line in (again / "trace.jsonl").open()]
    if len(os.sched_getaffinity(0)) > 1:
        assert repeated == [1 + number % 2 for number in range(len(steps))]
    assert len(losses(again)) == len(steps)
    assert "others_cpu_share" in record(run)
