"""What a reading process does: it reads the blocks it is asked for, and has their successors' shards fetched."""

from __future__ import annotations

import multiprocessing.process
import os
import queue
import signal
import threading
import weakref
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from numpy.typing import NDArray
from torch.utils.data import Dataset
from torch.utils.data._utils import signal_handling

from cram_composer.data.loading.shards import Blocks
from cram_composer.errors import CramError
from cram_composer.jobs.processes import end_with_parent

# One fetches while the other validates and unpacks.
_FETCHING_THREADS = 2
_T = TypeVar("_T")


class Request(NamedTuple):
    """A block to read, the caller's name for it, and shards that will be needed soon."""

    key: tuple[int, int]
    block: int
    shards: tuple[int, ...]


@dataclass(frozen=True)
class Failure:
    """Why a block cannot be had. As a value it crosses from a reading process whole; an exception would not."""

    message: str


class BlockReader(Dataset):
    """Reads blocks, in whichever process it is asked to; (key, rows or Failure)."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._ahead: queue.SimpleQueue[int | None] | None = None

    def __del__(self) -> None:
        if self._ahead is not None:
            for _ in range(_FETCHING_THREADS):
                self._ahead.put(None)

    def __getitem__(self, request: Request) -> tuple[tuple[int, int], NDArray | Failure]:
        if request.shards:
            self._fetch_ahead(request.shards)
        try:
            return request.key, self._blocks[request.block]
        except CramError as error:
            return request.key, Failure(str(error))
        except Exception as error:  # whatever it is, the reader must hear of it instead of waiting
            line = (str(error).splitlines() or [""])[0]
            return request.key, Failure(f"{self._blocks.streams[0].local}: {type(error).__name__}: {line}")

    def _fetch_ahead(self, shards: tuple[int, ...]) -> None:
        # Started where they are needed: no thread is there when processes are forked.
        if self._ahead is None:
            self._ahead = queue.SimpleQueue()
            for _ in range(_FETCHING_THREADS):
                arguments = (weakref.ref(self._blocks), self._ahead)
                threading.Thread(target=_fetch, args=arguments, name="shards", daemon=True).start()
        for shard in shards:
            self._ahead.put(shard)


def _fetch(reference: weakref.ref[Blocks], ahead: queue.SimpleQueue[int | None]) -> None:
    while (shard := ahead.get()) is not None and (blocks := reference()) is not None:
        # If it fails, the read that needs the shard will say so.
        with suppress(Exception):
            blocks.prepare_shard(shard, blocking=False)
        del blocks  # or waiting for the next would keep a stream open that nobody uses any more


def only(item: _T) -> _T:
    """The item itself: blocks are not collated."""
    return item


def set_up_worker(worker: int) -> None:
    """A reading process ends with the process it reads for, and only then."""
    # Ctrl-C and `timeout` signal the whole process group: the last step before the checkpoint still needs its rows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):
        os.setpgid(0, 0)
    end_with_parent(signal.SIGKILL)


def abandon(arrivals: Any) -> None:
    """End the reading processes of a torch loader's iterator now, also those that will not end.

    torch asks them to end and waits; Python waits at its own end for those that are left, for ever for one that is
    stopped, or that a dead disk holds.
    """
    workers = getattr(arrivals, "_workers", [])
    if not workers:
        return
    signal_handling._remove_worker_pids(id(arrivals))  # or their end would be reported as a failure
    arrivals._worker_pids_set = False
    arrivals._shutdown = True
    for worker in workers:
        worker.kill()
        multiprocessing.process._children.discard(worker)  # type: ignore[attr-defined]
    for queue_ in (*arrivals._index_queues, arrivals._worker_result_queue):
        queue_.cancel_join_thread()
        queue_.close()
