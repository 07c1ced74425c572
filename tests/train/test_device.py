from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

PAGE_FAULTS = """
import resource, torch
from cram_composer.device import set_up_cpu

def faults():
    counts = []
    for _ in range(8):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(size) for size in (2**20, 2**24, 2**25)]  # 4, 64 and 128 MiB
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        del tensors
    return sum(counts[3:])

set_up_cpu(1, trains_here=False)
before = faults()
set_up_cpu(1)
print(torch.get_num_threads(), before, faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
def test_a_cpu_that_trains_keeps_the_memory_of_one_step_for_the_next():
    command = [sys.executable, "-c", PAGE_FAULTS]
    threads, without, kept = map(int, subprocess.run(command, capture_output=True, check=True).stdout.split())
    assert threads == 1
    # Allocating 196 MiB again in each of five steps takes 250,000 page faults, or 500 with huge pages.
    assert without > 400
    assert kept < without / 4


COMPILER_PROCESSES = """
import os, sys
from pathlib import Path
from cram_composer.device import set_up_cpu
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "2"
set_up_cpu(1, trains_here=sys.argv[1] == "cpu")
import torch._inductor.async_compile
print(sum(len(children.read_text().split()) for children in Path("/proc/self/task").glob("*/children")))
"""


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_processes_that_compile_for_gpus_are_started_for_gpus_only(device: str):
    environment = {name: value for name, value in os.environ.items() if name != "TORCH_WARM_POOL"}
    command = [sys.executable, "-c", COMPILER_PROCESSES, device]
    result = subprocess.run(command, capture_output=True, check=True, env=environment)
    assert (int(result.stdout) > 0) == (device == "gpu")
