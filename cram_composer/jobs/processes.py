"""Processes that end with the one that started them."""

from __future__ import annotations

import ctypes
import sys

ENDS_WITH_PARENT = "CRAM_ENDS_WITH_PARENT"  # in the environment of the runs of a sweep: its process id
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def end_with_parent(number: int) -> None:
    """Have Linux send signal `number` to this process when the thread that started it ends, killed or not.

    Elsewhere there is no such thing, and nothing is done.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
