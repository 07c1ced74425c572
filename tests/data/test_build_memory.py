from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_below_the_stated_bound_and_below_the_text():
    program = ["-m", "benchmarks.data_build_memory", "--megabytes", "24", "--sample-mib", "4", "--shuffle-mib", "1"]
    done = subprocess.run([sys.executable, *program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["token_mib"] > 10 * 1, "the shuffle was not put to the test"
    assert result["growth_mib"] < result["bound_mib"] == 264
