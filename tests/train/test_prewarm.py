"""What is asked for beside the set-up is known when it is needed."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from cram_composer.train.prewarm import join, run_in_background

# In a process of its own: the answers are remembered for as long as one lives.
ASKED = """
import subprocess, sys
from cram_composer.train.prewarm import run_in_background, probe_vector_instructions, join
probe_vector_instructions()
assert "composer" not in sys.modules and "torch._inductor.async_compile" not in sys.modules
from composer.utils.collect_env import get_cpu_model
run_in_background(get_cpu_model)
join()
def refuse(*arguments, **options):
    raise AssertionError("asked again")
subprocess.Popen = refuse
from torch._inductor.cpu_vec_isa import pick_vec_isa
print(get_cpu_model(), pick_vec_isa())
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_answers_are_there_when_they_have_been_waited_for():
    result = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_a_question_that_fails_is_left_to_whoever_needs_the_answer():
    asked = []

    def fail() -> None:
        asked.append(1)
        raise OSError("no such processor")

    run_in_background(fail)
    join()
    assert asked == [1]
