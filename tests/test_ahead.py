"""What is asked for beside the set-up is known when it is needed."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

# In a process of its own: the answers are remembered for as long as one lives.
ASKED = """
import subprocess, sys
from cram_composer.ahead import ask_ahead
ask_ahead(compiles_for_cpu=sys.argv[1] == "compiled")()
from composer.utils.collect_env import get_cpu_model
from torch._inductor.cpu_vec_isa import pick_vec_isa, valid_vec_isa_list
known = [found.cache_info().currsize for found in (get_cpu_model, valid_vec_isa_list)]
def refuse(*arguments, **options):
    raise AssertionError("asked again")
subprocess.Popen = refuse
get_cpu_model()
if sys.argv[1] == "compiled":
    pick_vec_isa()
print(*known)
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
@pytest.mark.parametrize(("kind", "known"), [("compiled", "1 1"), ("eager", "1 0")])
def test_answers_are_there_when_it_is_waited_for(kind: str, known: str):
    result = subprocess.run([sys.executable, "-c", ASKED, kind], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == known


def test_a_question_that_fails_is_left_to_whoever_needs_the_answer(monkeypatch: pytest.MonkeyPatch):
    from cram_composer import ahead

    def fail() -> str:
        raise OSError("no such processor")

    monkeypatch.setattr(ahead, "get_cpu_model", fail)
    ahead.ask_ahead(compiles_for_cpu=False)()
