"""NVIDIA's management library, which knows the GPUs of a machine without creating a CUDA context."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def open_nvml() -> Iterator[Any]:
    """Yield pynvml, whose errors end the context; None without a driver or if CUDA_VISIBLE_DEVICES hides all GPUs."""
    import pynvml

    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        with suppress(pynvml.NVMLError):
            yield pynvml
    finally:
        pynvml.nvmlShutdown()
