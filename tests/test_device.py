from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

PAGE_FAULTS = """
import resource, sys, torch
from cram_composer.device import set_up_cpu
set_up_cpu(1, trains_here=sys.argv[1] == "cpu")

def step():
    return [torch.ones(size) for size in (2**20, 2**24, 2**25)]  # 4, 64 and 128 MiB

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(torch.get_num_threads(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
def test_a_cpu_that_trains_keeps_the_memory_of_one_step_for_the_next():
    def faults(kind: str) -> int:
        command = [sys.executable, "-c", PAGE_FAULTS, kind]
        threads, count = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert threads == "1"
        return int(count)

    pages = 5 * 192 * 2**20 // 4096  # 192 MiB taken anew in each of five steps
    assert faults("cpu") < pages / 20
    assert faults("gpu") > pages / 20  # as it is without: huge pages of 2 MiB may make it fewer than all
