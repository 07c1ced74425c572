"""Memory of a process and its descendants, measured through /proc (Linux only)."""

from __future__ import annotations

import re
from collections import defaultdict
from contextlib import suppress
from pathlib import Path


class TreeMemory:
    """Peak memory over all calls of `look()`, in MiB.

    Attributes:
        total: sum over the tree, with shared memory (mostly libraries) counted once (PSS).
        rss: sum of the resident memory of all processes, shared or not.
        largest: anonymous memory of the largest process. Mapped files, such as libraries, are excluded: the machine
            decides how many of their pages are resident.
        processes: largest number of processes.
    """

    def __init__(self, root: int) -> None:
        self.root = root
        self.total = self.rss = self.largest = 0.0
        self.processes = 0

    def look(self) -> None:
        """Measure once."""
        total = rss = 0.0
        pids = _tree(self.root)
        for pid in pids:
            with suppress(OSError):  # the process may have exited
                total += _value(pid, "smaps_rollup", "Pss")
                rss += _value(pid, "status", "VmRSS")
                self.largest = max(self.largest, own_memory(pid))
        self.total = max(self.total, total)
        self.rss = max(self.rss, rss)
        self.processes = max(self.processes, len(pids))


def own_memory(pid: int | str = "self") -> float:
    """Return the resident anonymous memory of a process in MiB."""
    return _value(pid, "status", "RssAnon")


def _tree(root: int) -> list[int]:
    children: dict[int, list[int]] = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The parent's pid is the second field after the name, which is in parentheses and may contain anything.
            children[int(path.read_text().rpartition(")")[2].split()[1])].append(int(path.parent.name))
    found = [root]
    for pid in found:
        found += children[pid]
    return found


def _value(pid: int | str, file: str, key: str) -> float:
    """Read a value in kB from a file in /proc and return it in MiB; 0 if the process has exited."""
    match = re.search(rf"^{key}:\s+(\d+) kB$", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE)
    return int(match[1]) / 1024 if match else 0.0
