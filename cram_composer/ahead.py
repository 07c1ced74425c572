"""What libraries would make a run wait for, asked for beside its set-up.

Composer asks a process of its own for the processor's name. torch's compiler loads a library in two of them, which
import torch, to see which vector instructions its code may use. Both remember the answer.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from composer.utils.collect_env import get_cpu_model


def ask_ahead(compiles_for_cpu: bool) -> Callable[[], None]:
    """Start asking; the function that is returned waits for the answers.

    A question that fails here is asked again by whoever needs the answer, which says what is wrong.
    """
    questions: list[Callable[[], object]] = [get_cpu_model]
    if compiles_for_cpu:
        # Here, and not in the thread: two threads that import parts of one library can find the other's half done.
        from torch._inductor.cpu_vec_isa import valid_vec_isa_list

        questions.append(valid_vec_isa_list)
    threads = [threading.Thread(target=_ask, args=(question,), daemon=True) for question in questions]
    for thread in threads:
        thread.start()

    def wait() -> None:
        for thread in threads:
            thread.join()

    return wait


def _ask(question: Callable[[], object]) -> None:
    with contextlib.suppress(Exception):
        question()
