"""Memory of a process and of all that it starts, watched from outside through /proc (Linux only)."""

from __future__ import annotations

import re
from collections import defaultdict
from contextlib import suppress
from pathlib import Path


class TreeMemory:
    """Peaks over all calls of `look()`, in MiB.

    `total` is of the sum over the tree, where memory that processes share (libraries, mostly) counts once (PSS); `rss`
    of the sum of what each has resident, shared or not; `largest` of a single process's own memory, without files that
    it maps, among them its libraries: how many of those pages are resident depends on the machine, not on the program.
    `processes` is how many were there at most.
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
            with suppress(OSError):  # it may have ended
                total += _value(pid, "smaps_rollup", "Pss")
                rss += _value(pid, "status", "VmRSS")
                self.largest = max(self.largest, own_memory(pid))
        self.total = max(self.total, total)
        self.rss = max(self.rss, rss)
        self.processes = max(self.processes, len(pids))


def own_memory(pid: int | str = "self") -> float:
    """What a process has resident that is no file, in MiB."""
    return _value(pid, "status", "RssAnon")


def _tree(root: int) -> list[int]:
    children: dict[int, list[int]] = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The parent's id is the second field after the name, which is in parentheses and may hold anything.
            children[int(path.read_text().rpartition(")")[2].split()[1])].append(int(path.parent.name))
    found = [root]
    for pid in found:
        found += children[pid]
    return found


def _value(pid: int | str, file: str, key: str) -> float:
    """A value in kB of a file in /proc, in MiB; 0 where a process that has ended no longer has it."""
    match = re.search(rf"^{key}:\s+(\d+) kB$", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE)
    return int(match[1]) / 1024 if match else 0.0
