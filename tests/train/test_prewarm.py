"""Background look-ups are complete when their results are needed."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from cram_composer.train.prewarm import join, run_in_background

# In a separate process, because the results are cached for the life of a process.
LOOK_UPS = """
import subprocess, sys
from cram_composer.train.prewarm import run_in_background, probe_vector_instructions, join
probe_vector_instructions()
assert "composer" not in sys.modules and "torch._inductor.async_compile" not in sys.modules
from composer.utils.collect_env import get_cpu_model
run_in_background(get_cpu_model)
join()
def refuse(*arguments, **options):
    raise AssertionError("looked up again")
subprocess.Popen = refuse
from torch._inductor.cpu_vec_isa import pick_vec_isa
print(get_cpu_model(), pick_vec_isa())
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_results_are_cached_after_join():
    result = subprocess.run([sys.executable, "-c", LOOK_UPS], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_errors_of_look_ups_are_ignored():
    calls = []

    def fail() -> None:
        calls.append(1)
        raise OSError("no such processor")

    run_in_background(fail)
    join()
    assert calls == [1]
