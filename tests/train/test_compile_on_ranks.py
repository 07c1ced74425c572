"""Compilation on several ranks, which takes longer on one of them than collectives wait."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from cram_composer.models.training_model import MaskedLMTrainingModel
from cram_composer.train.data import long_timeout_barrier
from tests.models.tiny_models import tiny_model, training_batch
from tests.tiny_runs import TinyRuns

TIMEOUT, COMPILATION = 1.0, 3.0  # seconds


def step_after_compilation(rank: int, folder: Path, barrier: bool, fails: bool) -> None:
    """Compile (for long on rank 1), then add gradients over the ranks; write the sum."""
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/store", timeout=timedelta(seconds=TIMEOUT), rank=rank, world_size=2
    )
    model = MaskedLMTrainingModel(tiny_model())
    model.compiled_regions = [model.model.head]
    if barrier:
        model.wait_for_ranks = long_timeout_barrier()
    run_once = model._run_once

    def compile_slowly(batch: dict[str, torch.Tensor]) -> None:
        if rank == 1:
            time.sleep(COMPILATION)
            if fails:
                raise TorchDynamoException("no compiler")
        run_once(batch)

    model._run_once = compile_slowly  # type: ignore[method-assign]
    for rows in (3, 2):  # a second shape, where a rank may compile no longer
        loss = model(training_batch(rows=rows)).loss.detach()
        torch.distributed.all_reduce(loss)
    Path(folder, str(rank)).write_text(f"{loss:.4f} {model.compile_state}")


def on_two_ranks(folder: Path, barrier: bool, fails: bool) -> list[int | None]:
    """Run `step_after_compilation` on two ranks; return their exit codes."""
    run: Callable[..., None] = step_after_compilation
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=run, args=(rank, folder, barrier, fails)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return [process.exitcode for process in ranks]


@pytest.mark.parametrize("fails", [False, True])
def test_ranks_wait_for_the_slowest_compilation(fails: bool, tiny_run: TinyRuns, tmp_path: Path) -> None:
    assert tiny_run.call(on_two_ranks, tmp_path, True, fails) == [0, 0]
    first, second = ((tmp_path / str(rank)).read_text() for rank in range(2))
    assert first.split()[0] == second.split()[0]
    assert ("failed" in second) == fails and "failed" not in first


def test_without_the_barrier_the_collective_times_out(tiny_run: TinyRuns, tmp_path: Path) -> None:
    assert any(tiny_run.call(on_two_ranks, tmp_path, False, False))
