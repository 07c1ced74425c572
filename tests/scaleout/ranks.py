"""Training runs of a few steps on several ranks (gloo), forked from a process with all imports."""

from __future__ import annotations

import contextlib
import importlib
import math
import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

from cram_composer.data.loading.shared_memory import remove_stale_shared_memory
from tests.tiny_runs import interrupted_copy, record

_MODULES = ["cram_composer.train.loop", "composer.distributed.fsdp2", "pytorch_optimizer", "tests.conftest"]
STEPS = 6
_ZERO = "scaleout.deepspeed.zero_optimization.stage"
STRATEGIES = {
    "ddp": ["scaleout=ddp"],
    "fsdp2": ["scaleout=fsdp2"],
    "zero-1": ["scaleout=deepspeed", f"{_ZERO}=1"],
    "zero-2": ["scaleout=deepspeed", f"{_ZERO}=2"],
    "zero-3": ["scaleout=deepspeed", f"{_ZERO}=3"],
}
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
    """Trainer of runs on `data`, each in a folder of `runs`.

    Ranks are forked from a separate process, because that of other tests has not imported DeepSpeed.

    Attributes:
        forwards: number of forward passes of each rank in the latest run.
    """

    def __init__(self, data: Path, runs: Path) -> None:
        self._data = data
        self._runs = runs
        self.forwards: list[int] = []
        self._alone: dict[str, Path] = {}
        self._jobs, jobs = multiprocessing.Pipe()
        self._server = multiprocessing.get_context("spawn").Process(target=_serve, args=(jobs,), daemon=False)
        self._server.start()

    def close(self) -> None:
        """End the process that ranks are forked from."""
        self._jobs.send(None)
        self._server.join()

    def __call__(
        self, name: str, ranks: int, *overrides: str, steps: int = STEPS, slowed: float = 0.0, bad: int = 0
    ) -> Path:
        """Train to the end and return the run folder. Raises AssertionError with the output of a failed rank.

        The last rank sleeps for `slowed` seconds in every forward pass. The loss of its forward pass number `bad`,
        counted from 1, is infinite.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        budget = f"budget={{wall: null, steps: {steps}}}"
        self._jobs.send((self._data, self._runs / name, [*SETTINGS, budget, *overrides], ranks, port, (slowed, bad)))
        said = self._jobs.recv()
        remove_stale_shared_memory()
        failures = [answer for answer in said.values() if isinstance(answer, str)]
        assert not failures, "\n".join(failures)
        self.forwards = [said[rank] for rank in range(ranks)]
        return self._runs / name

    def alone(self, name: str, *overrides: str) -> Path:
        """Train on one rank, once for all tests of this process, and return the run folder."""
        if name not in self._alone:
            self._alone[name] = self(name, 1, *overrides)
        return self._alone[name]

    def resume(self, whole: Path, at: int, name: str, ranks: int, *overrides: str) -> Path:
        """Resume from step `at` of the finished run `whole` on `ranks` ranks, as if killed there."""
        killed = interrupted_copy(whole, self._runs / name, at)
        self(name, ranks, *overrides)
        assert record(killed)["attempts"][-1]["started_at_step"] == at
        return killed


def _serve(jobs: Connection) -> None:
    """Import everything once, then train each job in forked processes, one per rank."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "DEEPSPEED_LOG_LEVEL": "error", "PYTHONWARNINGS": "ignore"}
    # DeepSpeed's Muon imports torch's Inductor, which takes two seconds.
    for module in (*_MODULES, "deepspeed.runtime.zero.muon.muon_optimizer"):
        importlib.import_module(module)
    context = multiprocessing.get_context("fork")
    while (job := jobs.recv()) is not None:
        answers = context.SimpleQueue()
        processes = [context.Process(target=_rank, args=(rank, *job, answers)) for rank in range(job[3])]
        for process in processes:
            process.start()
        said = dict(answers.get() for _ in processes)
        for process in processes:
            process.join()
        jobs.send(said)


def _rank(
    rank: int,
    data: Path,
    path: Path,
    overrides: list[str],
    ranks: int,
    port: int,
    trouble: tuple[float, int],
    answers: Any,
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_WORLD_SIZE=str(ranks),
        NODE_RANK="0",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    try:
        with _forwards(*(trouble if rank == ranks - 1 else (0.0, 0))) as counted:
            _train(rank, data, path, overrides, ranks)
    except BaseException:
        answers.put((rank, f"rank {rank}: {traceback.format_exc()}"))
    else:
        answers.put((rank, len(counted)))
    os._exit(0)  # skips the exit handlers of Streaming and gloo, which take a second


@contextlib.contextmanager
def _forwards(seconds: float, bad: int) -> Iterator[list[float]]:
    """Yield a list that grows with every training forward pass; delay each pass and make pass `bad` infinite."""
    from cram_composer.models.training_model import MaskedLMTrainingModel

    forward, counted = MaskedLMTrainingModel.forward, []

    def counting(self: MaskedLMTrainingModel, batch: Any) -> Any:
        counted.append(seconds)
        time.sleep(seconds)
        outputs = forward(self, batch)
        if len(counted) == bad:
            outputs.loss = outputs.loss * math.inf
        return outputs

    with mock.patch.object(MaskedLMTrainingModel, "forward", counting):
        yield counted


def _train(rank: int, data: Path, path: Path, overrides: list[str], ranks: int) -> None:
    from cram_composer.config import compose
    from cram_composer.config.schema.run import RunConfig
    from cram_composer.config.validation.run import check_run
    from cram_composer.device import choose_device
    from cram_composer.runs.folder import RunFolder
    from cram_composer.train import complete
    from cram_composer.train.loop import run
    from tests.conftest import REPOSITORY, SMALL

    composed = compose(RunConfig, REPOSITORY / "yamls" / "cram-cpu.yaml", [*SMALL, f"data.local={data}", *overrides])
    check_run(composed.config, ranks)
    folder = RunFolder(path)
    if rank == 0:
        folder.lock()
    # Both take longer than the rest of the run.
    with mock.patch.object(complete, "write_report"), mock.patch("cpuinfo.get_cpu_info", return_value={}):
        status = run(composed, choose_device(composed.config, ranks), folder, folder.read_record(), time.monotonic())
    folder.unlock()
    assert status == 0
