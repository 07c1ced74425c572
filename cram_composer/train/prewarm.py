"""What libraries would make a run wait for, asked for beside its set-up.

Composer asks a process of its own for the processor's name. torch's compiler loads a library in two of them, which
import torch, to see which vector instructions its code may use. Both remember the answer.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

_asked: list[threading.Thread] = []


def run_in_background(question: Callable[[], object]) -> None:
    """Call `question` in a thread. If it fails, whoever needs the answer asks again, and says what is wrong."""
    thread = threading.Thread(target=_ask, args=(question,), daemon=True)
    thread.start()
    _asked.append(thread)


def probe_vector_instructions() -> None:
    """Those that code compiled for this CPU may use."""
    # Here, and not in the thread: two threads that import parts of one library can find the other's half done.
    import torch._inductor.codecache
    import torch._inductor.cpp_builder
    import torch.utils._filelock
    import torch.utils.cpp_extension  # noqa: F401
    from torch._inductor.cpu_vec_isa import valid_vec_isa_list

    run_in_background(valid_vec_isa_list)


def join() -> None:
    """Until all that was asked for is known."""
    while _asked:
        _asked.pop().join()


def _ask(question: Callable[[], object]) -> None:
    with contextlib.suppress(Exception):
        question()
