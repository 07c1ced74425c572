"""Shared memory of Streaming and Python's resource tracker."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import REPOSITORY


def test_blocks_are_neither_tracked_nor_reported_at_the_end() -> None:
    code = (
        "from multiprocessing import resource_tracker\n"
        "from multiprocessing.shared_memory import SharedMemory\n"
        "from cram_composer.data.loading.shared_memory import untrack_shared_memory\n"
        "untrack_shared_memory(); untrack_shared_memory()\n"
        "block = SharedMemory('cram-test-untracked', create=True, size=8)\n"
        "resource_tracker.unregister('/never-registered', 'shared_memory')\n"
        "block.close(); block.unlink()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.returncode, done.stderr) == (0, "")
