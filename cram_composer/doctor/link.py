"""Bandwidth between devices, and its rank: python -m cram_composer.doctor.link SETTINGS.json"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from cram_composer.doctor.checks import Check, CheckContext
from cram_composer.errors import CramError
from cram_composer.jobs.processes import end_with_parent, last_line
from cram_composer.planning.throughput import launch_ranks
from cram_composer.storage.files import read_json, write_json

_BYTES = 128 << 20
_TIMES = 10
_SECONDS = 180.0  # for all of them, most of it to import torch on a busy machine


def check_link(context: CheckContext) -> Iterator[Check]:
    """All-reduce a buffer of gradients on all devices."""
    number = context.processes
    if context.device.name == "gpu" and number > torch.cuda.device_count():
        raise CramError(f"-n {number}: this machine has {torch.cuda.device_count()} GPU(s)")
    with tempfile.TemporaryDirectory(prefix="cram-doctor-") as folder:
        settings, log = Path(folder) / "settings.json", Path(folder) / "log.txt"
        write_json(settings, {"kind": context.device.name, "result": str(Path(folder) / "result.json")})
        status = launch_ranks("cram_composer.doctor.link", number, settings, log, _SECONDS)
        if status:
            last = last_line(log.read_text(errors="replace"), "no output")
            raise CramError(f"{number} ranks ended with exit status {status}: {last}")
        seconds = read_json(Path(folder) / "result.json")["seconds"]
    # Each rank sends and receives 2 (n - 1) / n of the buffer in a ring.
    rate = 2 * (number - 1) / number * _BYTES / seconds
    size = f"{_BYTES >> 20} MiB on {number} ranks"
    line = f"all-reduce of {size} in {seconds * 1e3:,.1f} ms, {rate / 1e9:,.1f} GB/s of a ring"
    yield Check("link", "pass", line, {"ranks": number, "seconds": seconds, "bytes_per_second": rate})


def _measure(kind: str) -> float | None:
    """Return the median seconds of an all-reduce, on rank 0 alone."""
    local = int(os.environ["LOCAL_RANK"])
    if kind == "gpu":
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if kind == "gpu" else "gloo")
    buffer = torch.ones(_BYTES // 4, device=torch.device("cuda", local) if kind == "gpu" else "cpu")
    taken = []
    for _ in range(_TIMES + 1):
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(buffer, op=dist.ReduceOp.AVG if kind == "gpu" else dist.ReduceOp.SUM)
        if kind == "gpu":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    rank = dist.get_rank()
    # `buffer` must outlive the group: Gloo's thread waits for the GIL to release the last tensor, and the group's end,
    # which holds the GIL, waits for the thread.
    dist.destroy_process_group()
    return statistics.median(taken[1:]) if rank == 0 else None


if __name__ == "__main__":
    end_with_parent(signal.SIGTERM)
    given = read_json(Path(sys.argv[1]))
    seconds = _measure(given["kind"])
    if seconds is not None:
        write_json(Path(given["result"]), {"seconds": seconds})
