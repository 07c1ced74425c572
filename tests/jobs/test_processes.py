"""Commands as jobs."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from cram_composer.errors import CramError
from cram_composer.jobs.processes import ENDS_WITH_PARENT, run_command


def test_a_command_finds_its_parent_and_appends_to_its_log(tmp_path: Path) -> None:
    log = tmp_path / "folder" / "log"
    for _ in range(2):
        run_command([sys.executable, "-c", f"import os; print(os.environ['{ENDS_WITH_PARENT}'])"], log)
    assert log.read_text() == f"{os.getpid()}\n" * 2


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import sys; print('started'); sys.exit('error: the disk is full')", "ended with status 1: the disk is full"),
        ("import os; print('at work', flush=True); os.kill(os.getpid(), 9)", "ended with signal 9: at work"),
        ("import sys; sys.exit(2)", "ended with status 2: no output"),
    ],
)
def test_a_failed_command_is_one_line(program: str, error: str, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(CramError) as caught:
        run_command([sys.executable, "-c", program], tmp_path / "log")
    assert str(caught.value) == error
    assert signal.getsignal(signal.SIGTERM) == handler
