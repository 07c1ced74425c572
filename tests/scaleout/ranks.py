"""Trainings of a few steps on several ranks (gloo), forked from a process that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from pathlib import Path
from typing import Any
from unittest import mock

from cram_composer.data.stale_memory import remove_stale_memory

_MODULES = [
    "cram_composer.training",
    "cram_composer.scaleout.fsdp2",
    "cram_composer.scaleout.zero",
    "pytorch_optimizer",
    "tests.scaleout.preload",
    "tests.conftest",
]
STEPS = 6
SETTINGS = [
    "data.num_workers=0",
    "train.batch_size=32",
    "train.device_train_microbatch_size=4",
    "algorithms.batch_size_ramp=null",
    "train.threads=1",
    "eval.batch_size=8",
    "logging.progress_bar=false",
    "checkpoint={interval: 10m, keep: 100}",
]


class Ranks:
    """Trains on `data`, each run in a folder of `runs`."""

    def __init__(self, data: Path, runs: Path) -> None:
        self._data = data
        self._runs = runs
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_MODULES)

    def __call__(self, name: str, ranks: int, *overrides: str, steps: int = STEPS) -> Path:
        """Train to the end; returns the run's folder. An error of a rank is an AssertionError with what it said."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        answers = self._context.SimpleQueue()
        budget = f"budget={{wall: null, steps: {steps}}}"
        arguments = (self._data, self._runs / name, [*SETTINGS, budget, *overrides], ranks, port, answers)
        processes = [self._context.Process(target=_rank, args=(rank, *arguments)) for rank in range(ranks)]
        for process in processes:
            process.start()
        said = [answers.get() for _ in processes]
        for process in processes:
            process.join(60)
        remove_stale_memory()
        assert not any(said), "\n".join(filter(None, said))
        return self._runs / name


def _rank(rank: int, data: Path, path: Path, overrides: list[str], ranks: int, port: int, answers: Any) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_WORLD_SIZE=str(ranks),
        NODE_RANK="0",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        DS_ACCELERATOR="cpu",
    )
    try:
        _train(rank, data, path, overrides, ranks)
    except BaseException:
        import traceback

        answers.put(f"rank {rank}: {traceback.format_exc()}")
    else:
        answers.put(None)
    os._exit(0)  # what Streaming and gloo would do at the end of a process takes a second


def _train(rank: int, data: Path, path: Path, overrides: list[str], ranks: int) -> None:
    from cram_composer import finish
    from cram_composer.config import compose
    from cram_composer.config.checks import check_run
    from cram_composer.config.schema import RunConfig
    from cram_composer.device import choose_device
    from cram_composer.record import RunFolder
    from cram_composer.training import run
    from tests.conftest import REPOSITORY, SMALL

    composed = compose(RunConfig, REPOSITORY / "yamls" / "cram-cpu.yaml", [*SMALL, f"data.local={data}", *overrides])
    check_run(composed.config, ranks)
    folder = RunFolder(path)
    if rank == 0:
        folder.lock()
    # Both take longer than all the rest.
    with mock.patch.object(finish, "_draw_page"), mock.patch("cpuinfo.get_cpu_info", return_value={}):
        status = run(composed, choose_device(composed.config, ranks), folder, folder.read_record(), time.monotonic())
    folder.unlock()
    assert status == 0
