"""Warm slow library look-ups in the background during set-up.

Composer starts a process to find the processor's name. torch's compiler starts two processes, which import torch, to
find the vector instructions of the CPU. Both cache the result.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

_threads: list[threading.Thread] = []


def run_in_background(lookup: Callable[[], object]) -> None:
    """Call `lookup` in a thread. Errors are ignored, because the caller that needs the result repeats the look-up."""
    thread = threading.Thread(target=_run, args=(lookup,), daemon=True)
    thread.start()
    _threads.append(thread)


def probe_vector_instructions() -> None:
    """Find the vector instructions of this CPU for torch's compiler in the background."""
    # Imported here, because threads that import parts of one library can see each other's incomplete modules.
    import torch._inductor.codecache
    import torch._inductor.cpp_builder
    import torch.utils._filelock
    import torch.utils.cpp_extension  # noqa: F401
    from torch._inductor.cpu_vec_isa import valid_vec_isa_list

    run_in_background(valid_vec_isa_list)


def join() -> None:
    """Wait for all look-ups."""
    while _threads:
        _threads.pop().join()


def _run(lookup: Callable[[], object]) -> None:
    with contextlib.suppress(Exception):
        lookup()
