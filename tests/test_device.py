from __future__ import annotations

import ctypes
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
    # 196 MiB taken anew in each of five steps are 250,000 pages, or 500 huge ones where the system gives those.
    assert without > 400
    assert kept < without / 4
