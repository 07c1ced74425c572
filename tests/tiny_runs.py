"""Real training runs of ten steps on a CPU with synthetic data, and access to their files."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from cram_composer.config import Composed
from cram_composer.data.loading.shared_memory import remove_stale_shared_memory

_SCRIPT_SECONDS = 300


class TinyRuns:
    """Trainer of runs in processes forked from one with all imports, so that a run takes one or two seconds.

    Every step uses a tenth of the budget and saves a checkpoint.
    """

    def __init__(self, data: Path, runs: Path) -> None:
        self._data = data
        self._runs = runs
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["cram_composer.train.loop", "tests.conftest", "pytorch_optimizer"])

    def __call__(self, name: str, *overrides: str) -> Path:
        """Train or resume with the configuration `overrides`; return the run folder `name`."""
        self.call(_train, self._data, self._runs / name, overrides)
        return self._runs / name

    def continue_run(self, path: Path, composed: Composed) -> None:
        """Continue in an existing run folder."""
        self.call(run_tiny, composed, path)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of a module in a process of its own; return its result."""
        with ProcessPoolExecutor(1, mp_context=self._context) as pool:  # its processes may have reader processes
            result = pool.submit(_call_with_fork, function, arguments).result()
        remove_stale_shared_memory()  # Streaming's exit handler does not run in a forked process
        return result

    def run_script(self, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a Python script with its arguments to the end, as in a process of its own."""
        with tempfile.TemporaryDirectory() as scratch:
            status = self.call(_run_script, list(command), dict(environment), scratch)
            shown = [(Path(scratch) / name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(list(command), status, *shown)

    def resume(self, whole: Path, at: int, *overrides: str) -> Path:
        """Resume from step `at` of the finished run `whole`, as if killed there; return the new folder."""
        killed = interrupted_copy(whole, whole.with_name(f"{whole.name}-killed"), at)
        self(killed.name, *overrides)
        assert record(killed)["attempts"][-1]["started_at_step"] == at
        return killed


def _call_with_fork(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    multiprocessing.set_start_method("fork", force=True)  # for reader processes, as in a run of its own
    return function(*arguments)


def _run_script(command: list[str], environment: dict[str, str], scratch: str) -> int:
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        with (Path(scratch) / name).open("w") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    signal.alarm(_SCRIPT_SECONDS)  # ends this process if the script hangs
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    warnings.simplefilter(environment["PYTHONWARNINGS"])  # type: ignore[arg-type]
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def compose_tiny(data: Path, *overrides: str) -> Composed:
    """Compose the configuration of a tiny run on `data`."""
    from cram_composer.config import compose
    from cram_composer.config.schema.run import RunConfig
    from cram_composer.config.validation.run import check_run
    from tests.conftest import REPOSITORY, SMALL

    settings = [
        *SMALL,
        f"data.local={data}",
        "data.num_workers=0",
        "budget={wall: null, steps: 10}",
        "checkpoint={interval: 0.000001s, keep: 100}",
        "train.threads=1",
        *overrides,
    ]
    composed = compose(RunConfig, REPOSITORY / "yamls" / "cram-cpu.yaml", settings)
    check_run(composed.config, world_size=1)
    return composed


def _train(data: Path, path: Path, overrides: tuple[str, ...]) -> None:
    run_tiny(compose_tiny(data, *overrides), path)


def run_tiny(composed: Composed, path: Path) -> None:
    """Train or resume in the run folder `path`, in this process."""
    from cram_composer.device import choose_device
    from cram_composer.runs.folder import RunFolder
    from cram_composer.train import complete
    from cram_composer.train.loop import run

    warnings.filterwarnings("error", message="required_on_load")  # for a class that Composer takes for its own
    folder = RunFolder(path)
    folder.lock()
    # Both take longer than the rest of the run.
    with mock.patch.object(complete, "write_report"), mock.patch("cpuinfo.get_cpu_info", return_value={}):
        status = run(composed, choose_device(composed.config, 1), folder, folder.read_record(), time.monotonic())
    folder.unlock()
    assert status == 0


def saved(folder: Path, step: int = 10) -> dict[str, Any]:
    """Load weights, optimizer and algorithms from a run's checkpoint."""
    state = torch.load(folder / "checkpoints" / f"step-{step:08d}.pt", weights_only=False)["state"]
    algorithms = {name: {k: v for k, v in held.items() if k != "repr"} for name, held in state["algorithms"]}
    return {"model": state["model"], "optimizers": state["optimizers"], "algorithms": algorithms}


def last_state(folder: Path) -> dict[str, Any]:
    """Load the state of a run's newest checkpoint."""
    return torch.load(sorted((folder / "checkpoints").glob("step-*.pt"))[-1], weights_only=False)["state"]


def interrupted_copy(whole: Path, copy: Path, at: int = 4) -> Path:
    """Copy a finished run to `copy` as if it had been killed at step `at`."""
    shutil.copytree(whole, copy)
    for file in (copy / "checkpoints").iterdir():
        if int(file.stem.split("-")[1]) > at:
            file.unlink()
    (copy / "record.json").write_text(json.dumps(record(copy) | {"status": "running"}))
    return copy


def record(folder: Path) -> dict[str, Any]:
    """Read a run's record."""
    return json.loads((folder / "record.json").read_text())


def losses(folder: Path) -> list[float]:
    """Read the training losses by step."""
    return [json.loads(line)["loss"] for line in (folder / "trace.jsonl").read_text().splitlines()]


def same(one: Any, other: Any) -> bool:
    """Return True if two states are equal, tensors bit by bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
