"""Shared memory that Streaming leaves behind when a process is killed.

Streaming names its blocks /dev/shm/NNNNNN_name and frees them at a regular exit. After a `kill -9` they remain, and a
data set with a remote then refuses to open ("Reused local directory").
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

_SHM = Path("/dev/shm")  # noqa: S108 - only names are read, and only this user's can be removed
_NAME = re.compile(r"(\d{6})_[a-z_]+")


def remove_stale_shared_memory() -> list[str]:
    """Remove the blocks of every prefix that no process on this machine has mapped; return these prefixes."""
    if not _SHM.is_dir():
        return []
    blocks: dict[str, list[Path]] = {}
    for path in _SHM.iterdir():
        match = _NAME.fullmatch(path.name)
        if match:
            blocks.setdefault(match[1], []).append(path)
    stale = sorted(blocks.keys() - _mapped_prefixes()) if blocks else []
    for prefix in stale:
        for path in blocks[prefix]:
            with contextlib.suppress(OSError):  # another user's, or removed meanwhile
                path.unlink()
    return stale


def _mapped_prefixes() -> set[str]:
    mapped: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's, whose blocks cannot be removed either
            maps = (process / "maps").read_text()
            mapped.update(re.findall(rf"{_SHM}/(\d{{6}})_", maps))
    return mapped
