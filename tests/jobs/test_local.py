"""Jobs in worker processes: order, isolation, slots, and ending with the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cram_composer.jobs.local import LocalRunner, Slot, visible_gpus
from tests.conftest import REPOSITORY
from tests.jobs import calls


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "timed out"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Return True if a thread of the process is alive: its files are open until the last thread has ended."""
    try:
        stats = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/stat")]
    except (FileNotFoundError, ProcessLookupError):  # a thread ended during the check: check again
        return True
    return any(stat.rsplit(")", 1)[1].split()[0] != "Z" for stat in stats)


def test_results_come_in_order_of_completion(tmp_path: Path) -> None:
    with LocalRunner([Slot()] * 2) as runner:
        order = []
        for result in runner.run([partial(calls.wait_for, tmp_path / "go"), partial(calls.sleep, 0, "short")]):
            order.append((result.index, result.value))
            (tmp_path / "go").touch()
    assert order == [(1, "short"), (0, None)]


def test_failing_jobs_are_results_and_their_worker_continues() -> None:
    with LocalRunner([Slot()]) as runner:
        jobs = [partial(calls.fail, "no text"), calls.crash, calls.process_id, calls.process_id]
        results = list(runner.run(jobs))
        again = list(runner.run([calls.process_id]))
    assert [result.error for result in results] == ["no text", "ValueError: two lines", "", ""]
    assert results[2].value == results[3].value == again[0].value != os.getpid()
    assert not any(result.killed for result in results)


def test_a_worker_is_as_quiet_as_a_command() -> None:
    with LocalRunner([Slot()]) as runner:
        (result,) = runner.run([calls.warnings_of_norms])
    assert result.value == 0


def test_a_killed_worker_is_reported_and_replaced() -> None:
    with LocalRunner([Slot()]) as runner:
        killed, after, last = runner.run([calls.kill_itself, calls.process_id, calls.process_id])
        os.kill(last.value, signal.SIGKILL)
        wait_until(lambda: not is_alive(last.value))
        (idle,) = runner.run([calls.process_id])
    assert killed.killed and killed.error == "its process was killed (out of memory?)"
    assert after.value == last.value and not after.error
    assert not idle.error and idle.value != last.value, "the death of an idle worker must not fail a job"


def test_a_killed_worker_is_noticed_while_a_fork_of_it_lives(tmp_path: Path) -> None:
    with LocalRunner([Slot()]) as runner:
        results = list(runner.run([partial(calls.kill_itself_and_leave_a_fork, tmp_path / "go"), calls.process_id]))
    (tmp_path / "go").touch()
    assert [result.killed for result in results] == [True, False]


def test_as_many_jobs_run_as_there_are_slots() -> None:
    counts = set()
    jobs = [partial(calls.sleep, 0.05)] * 7
    with LocalRunner([Slot()] * 3) as runner:
        for _ in runner.run(jobs, on_poll=lambda running: counts.add(len(running))):
            pass
    assert max(counts) == 3 and 0 in counts


def test_a_slot_pins_its_gpu_and_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = sorted(os.sched_getaffinity(0))
    name = "CUDA_VISIBLE_DEVICES"
    monkeypatch.setenv(name, "4,7")
    assert visible_gpus(2) == ["4", "7"]
    with LocalRunner([Slot("7", (cores[-1],))]) as runner:
        assert [result.value for result in runner.run([partial(calls.surroundings, name)] * 2)] == [
            ("7", [cores[-1]])
        ] * 2
    monkeypatch.setenv("CRAM_TEST", "set after the server of the workers was started")
    with LocalRunner([Slot()]) as runner:
        assert [result.value for result in runner.run([partial(calls.surroundings, name)])] == [("4,7", cores)]
        (result,) = runner.run([partial(calls.surroundings, "CRAM_TEST")])
        assert result.value[0] is not None


def test_a_job_starts_after_the_one_it_needs(tmp_path: Path) -> None:
    log = tmp_path / "log"
    jobs = [partial(calls.append, log, word) for word in ("second", "third", "first")]
    with LocalRunner([Slot()] * 3) as runner:
        results = list(runner.run(jobs, after={0: 2, 1: 0}))
    assert [result.index for result in results] == [2, 0, 1]
    assert log.read_text() == "first second third "


def test_progress_is_polled(tmp_path: Path) -> None:
    polled = []

    def poll(running: dict[int, float]) -> None:
        polled.append(dict(running))
        if running.get(0) == 0.25:
            (tmp_path / "go").touch()

    with LocalRunner([Slot()]) as runner:
        results = list(runner.run([partial(calls.report, 0.25, tmp_path / "go"), calls.process_id], on_poll=poll))
    assert [result.error for result in results] == ["", ""]
    assert {1: 0.0} in polled, "the next job of the worker starts at 0"
    assert polled[-1] == {}


def test_fail_fast_starts_no_more_jobs_and_lets_those_that_run_end(tmp_path: Path) -> None:
    jobs = [
        partial(calls.wait_for, tmp_path / "go"),
        partial(calls.fail, "no"),
        partial(calls.append, tmp_path / "x", ""),
    ]
    with LocalRunner([Slot()] * 2) as runner:
        results = []
        for result in runner.run(jobs, fail_fast=True):
            results.append(result)
            (tmp_path / "go").touch()
    assert [(result.index, result.error) for result in results] == [(1, "no"), (0, "")]
    assert not (tmp_path / "third").exists()


def test_leaving_the_runner_ends_the_jobs(tmp_path: Path) -> None:
    waiting = tmp_path / "never.waiting"
    jobs = [partial(calls.wait_for, tmp_path / "never"), partial(calls.fail, "no")]
    with LocalRunner([Slot()] * 2) as runner:
        for _ in runner.run(jobs):
            wait_until(lambda: waiting.exists() and waiting.read_text() != "")
            break
    assert not is_alive(int(waiting.read_text()))


PROGRAM = """
import sys
from functools import partial
from pathlib import Path
from cram_composer.jobs.local import LocalRunner, Slot
from cram_composer.jobs.processes import run_command
from tests.jobs import calls

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    command = [sys.executable, "-c", "import sys; from tests.jobs.test_local import command; command(sys.argv[1])"]
    jobs = [
        partial(calls.wait_for, folder / "never"),
        partial(run_command, [*command, str(folder / "command.waiting")], folder / "log"),
    ]
    with LocalRunner([Slot()] * 2) as runner:
        for result in runner.run(jobs):
            print(result)
"""


def command(waiting: str) -> None:
    """Run as a command that saves slowly when it gets a signal to end."""

    def save(number: int, frame: object) -> None:
        time.sleep(0.5)
        print(f"saved at signal {number}", flush=True)
        os._exit(3)

    signal.signal(signal.SIGTERM, save)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Path(waiting).write_text(str(os.getpid()))
    time.sleep(600)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_busy_workers_and_their_commands_end_with_an_interrupted_or_killed_parent(number: int, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    waiting = [tmp_path / "never.waiting", tmp_path / "command.waiting"]
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(lambda: all(path.exists() and path.read_text() for path in waiting))
    pids = [int(path.read_text()) for path in waiting]
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)  # like Ctrl-C in a terminal
    else:
        parent.send_signal(number)
    parent.wait(60)
    if number == signal.SIGINT:
        assert not any(map(is_alive, pids)), "an interrupted runner must wait for its jobs"
    wait_until(lambda: not any(map(is_alive, pids)))
    assert (tmp_path / "log").read_text() == f"saved at signal {signal.SIGTERM.value}\n"
