"""Reader processes, which read the requested blocks and prefetch shards."""

from __future__ import annotations

import multiprocessing.process
import os
import queue
import re
import signal
import threading
import weakref
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from numpy.typing import NDArray
from torch.utils.data import Dataset
from torch.utils.data._utils import signal_handling

from cram_composer.data.loading.block_dataset import BlockDataset
from cram_composer.errors import CramError
from cram_composer.jobs.processes import end_with_parent

# One downloads while the other validates and unpacks.
_FETCHING_THREADS = 2
_T = TypeVar("_T")


class ReadRequest(NamedTuple):
    """A block to read, with a key for its reply, and shards that will be needed soon."""

    key: tuple[int, int]
    block: int
    shards: tuple[int, ...]


@dataclass(frozen=True)
class ReadFailure:
    """The reason why a block cannot be read. Unlike an exception, it is passed between processes unchanged."""

    message: str


class ReaderKilledError(CramError):
    """A reader process was killed, usually for lack of memory; the run can be resumed."""


def reader_killed(error: BaseException) -> ReaderKilledError | None:
    """Return a one-line error if `error` is torch's report of a killed reader process, or made of one; else None.

    torch raises it from a signal handler, so it may come from any line of the main thread.
    """
    if isinstance(error, ReaderKilledError):
        return error
    found = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed|exited)", str(error))
    if found is None:
        return None
    return ReaderKilledError(
        f"data: a reader process (pid {found[1]}) was killed, perhaps for lack of memory; run the same command to "
        "resume from the last checkpoint"
    )


class BlockReader(Dataset):
    """Reads blocks in any process; returns (key, rows or ReadFailure)."""

    def __init__(self, blocks: BlockDataset) -> None:
        self._blocks = blocks
        self._fetch_queue: queue.SimpleQueue[int | None] | None = None

    def __del__(self) -> None:
        if self._fetch_queue is not None:
            for _ in range(_FETCHING_THREADS):
                self._fetch_queue.put(None)

    def __getitem__(self, request: ReadRequest) -> tuple[tuple[int, int], NDArray | ReadFailure]:
        if request.shards:
            self._fetch_ahead(request.shards)
        try:
            return request.key, self._blocks[request.block]
        except CramError as error:
            return request.key, ReadFailure(str(error))
        except Exception as error:  # the requesting process would wait forever for a lost error
            line = (str(error).splitlines() or [""])[0]
            return request.key, ReadFailure(f"{self._blocks.streams[0].local}: {type(error).__name__}: {line}")

    def _fetch_ahead(self, shards: tuple[int, ...]) -> None:
        # Started on first use, so that no thread exists when processes are forked.
        if self._fetch_queue is None:
            self._fetch_queue = queue.SimpleQueue()
            for _ in range(_FETCHING_THREADS):
                arguments = (weakref.ref(self._blocks), self._fetch_queue)
                threading.Thread(target=_fetch_shards, args=arguments, name="shards", daemon=True).start()
        for shard in shards:
            self._fetch_queue.put(shard)


def _fetch_shards(reference: weakref.ref[BlockDataset], fetch_queue: queue.SimpleQueue[int | None]) -> None:
    while (shard := fetch_queue.get()) is not None and (blocks := reference()) is not None:
        # The read that needs the shard reports the error.
        with suppress(Exception):
            blocks.prepare_shard(shard, blocking=False)
        del blocks  # otherwise waiting would keep an unused data set open


def identity(item: _T) -> _T:
    """Return the item unchanged: blocks are not collated."""
    return item


def init_worker(worker: int) -> None:
    """End this reader process with its parent, and ignore signals to the process group."""
    # Ctrl-C and `timeout` signal the process group, but the last step before the checkpoint still needs its rows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):
        os.setpgid(0, 0)
    end_with_parent(signal.SIGKILL)


def kill_workers(loader_iterator: Any) -> None:
    """Kill the reader processes of a torch loader's iterator.

    torch waits for them to exit, and so does Python at its own exit. Both would wait forever for a process that is
    stopped or blocked by a failed disk.
    """
    workers = getattr(loader_iterator, "_workers", [])
    if not workers:
        return
    signal_handling._remove_worker_pids(id(loader_iterator))  # otherwise torch would report their end as a failure
    loader_iterator._worker_pids_set = False
    loader_iterator._shutdown = True
    for worker in workers:
        worker.kill()
        multiprocessing.process._children.discard(worker)  # type: ignore[attr-defined]
    for queue_ in (*loader_iterator._index_queues, loader_iterator._worker_result_queue):
        queue_.cancel_join_thread()
        queue_.close()
