"""Access to the blocks of a data set by number, with shards fetched and evicted as needed.

Streaming provides the shard format, the shard states shared by all processes of a machine, eviction and the sampling of
epochs. Missing in Streaming 0.13 (docs/development/upstream.md) and added here: a shard that cannot be fetched raises
an error in every process that needs it, within a deadline.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from streaming import StreamingDataset
from streaming.base.dataset import _ShardState
from streaming.base.shared import SharedMemory
from streaming.base.shuffle import get_shuffle

from cram_composer.data.loading.shard_stream import MIN_FETCH_SECONDS, ShardError, ShardStream
from cram_composer.data.manifest import COLUMN
from cram_composer.errors import CramError
from cram_composer.storage.files import lock_folder
from cram_composer.storage.paths import plain_name

_POLL_SECONDS = 0.02
_MAX_READS = 8  # a shard may be evicted between fetching and reading
# The shuffle spreads a shard's blocks over a window of this many shards, which must all be local at the same time.
_WINDOW_SHARDS = 16


class BlockDataset(StreamingDataset):
    """The blocks of one or more streams as an array: `blocks[i]` is [rows, sequence_length]. It is never iterated.

    Safe for any number of processes and threads of a machine; all ranks must open it together. Every access that fails
    raises ShardError.

    Args:
        block_rows: rows of each block, [blocks], if known.
        row_length: tokens in a row, if known.
        vocab_size: number that every token id must be below, if known.

    Attributes:
        shuffle_window: shards over which the shuffle spreads the blocks of one; it depends on `cache_limit`, so that a
            run that resumes sets it to the value at its start.
    """

    def __init__(
        self,
        streams: Sequence[ShardStream],
        block_rows: NDArray[np.int64] | None = None,
        *,
        row_length: int | None = None,
        vocab_size: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        cache_limit: int | None = None,
    ) -> None:
        super().__init__(
            streams=streams,
            shuffle=shuffle,
            shuffle_seed=seed,
            # One canonical node on any hardware: the order must not depend on the number of machines.
            num_canonical_nodes=1,
            batch_size=1,
            cache_limit=cache_limit,
        )
        for shard in self.shards:
            for file in filter(None, shard.file_pairs[0]):
                plain_name(file.basename, f"{shard.dirname}/{shard.split}/index.json")
        if block_rows is not None and len(block_rows) != self.num_samples:
            raise CramError(
                f"{streams[0].local}: the index lists {self.num_samples} blocks, the manifest {len(block_rows)}; "
                "the data set is damaged, copy or build it again"
            )
        self.block_rows = block_rows
        self._row_length, self._vocab_size = row_length, vocab_size
        self.shuffle_window = _WINDOW_SHARDS  # shards
        if self.cache_limit:
            # Shards that are being fetched or about to be evicted take space too.
            fitting = self.cache_limit // (2 * self.max_shard_size_across_all_streams)
            self.shuffle_window = max(2, min(_WINDOW_SHARDS, fitting))
        self._fetch_timeout = max(stream.fetch_timeout for stream in streams)
        # Streaming would mistake its own lock file, left by a killed process, for a running process.
        split_folders = "\n".join(sorted(os.path.abspath(os.path.join(s.local, s.split)) for s in streams))
        digest = hashlib.sha256(split_folders.encode()).hexdigest()[:16]
        self._cache_filelock_path = str(lock_folder() / f"shards-{digest}.lock")
        self._locks = threading.local()
        if cache_limit is not None and self._unique_rank_world.is_local_leader:
            with self._cache_lock():
                while self.cache_usage > cache_limit and (self._shard_states.numpy() == _ShardState.LOCAL).any():
                    self._evict_coldest_shard()
        # Streaming keeps its shared memory and open files until the process exits. Memory that ranks share must stay:
        # otherwise a slower rank finds the names of the next data set taken.
        if self._unique_rank_world.num_ranks == 1:
            shared = [self._shared_barrier._arr, self._next_epoch.arr, self._cache_usage.arr]
            owned = [self._locals_shm, *(one.shm for one in (*shared, self._shard_states, self._shard_access_times))]
            for memory in owned:
                atexit.unregister(memory.cleanup)
            weakref.finalize(self, _free_shared_memory, owned, os.getpid())

    def get_item(self, sample_id: int, retry: int = _MAX_READS) -> NDArray:
        """Return block `sample_id`, fetching its shard if necessary."""
        shard_id, index = self.spanner[sample_id]
        shard_id = int(shard_id)
        for attempt in range(retry):
            try:
                with np.errstate(over="ignore"):  # from the offsets in a damaged shard
                    rows: NDArray = self.shards[shard_id][index][COLUMN]
                if self.block_rows is not None and len(rows) != self.block_rows[sample_id]:
                    raise ValueError(f"a block of {len(rows)} rows instead of {self.block_rows[sample_id]}")
                self._check_rows(rows)
                self._shard_access_times[shard_id] = time.time_ns()
                return rows
            except FileNotFoundError:
                self.prepare_shard(shard_id)
            except Exception as error:  # decoding a damaged shard raises various errors
                self._discard_shard(shard_id, error, last=attempt > 0)
        raise ShardError(
            f"{self._shard_path(shard_id)}: was evicted {retry} times before it could be read; raise data.cache_limit"
        )

    def _check_rows(self, rows: NDArray) -> None:
        """Raise ValueError for rows that do not fit the manifest, with which a run would train on nonsense."""
        if rows.ndim != 2 or self._row_length not in (None, rows.shape[1]):
            raise ValueError(f"a block of shape {rows.shape} instead of rows of {self._row_length} tokens")
        if self._vocab_size is not None and rows.size and (largest := int(rows.max())) >= self._vocab_size:
            raise ValueError(f"token id {largest} in a vocabulary of {self._vocab_size}")

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Fetch a shard unless it is local or another process is fetching it. Raises ShardError."""
        deadline = time.monotonic() + self._fetch_timeout
        stream, shard = self.streams[self.stream_per_shard[shard_id]], self.shards[shard_id]
        reserved = shard.get_max_size()
        while not self._claim_shard(shard_id, reserved):
            if not blocking or self._is_local(shard_id):
                return
            if time.monotonic() > deadline + MIN_FETCH_SECONDS:
                raise ShardError(
                    f"{self._shard_path(shard_id)}: not fetched by any process in {self._fetch_timeout:.0f} s; "
                    "raise data.deadline"
                )
            time.sleep(_POLL_SECONDS)
        state, added = _ShardState.REMOTE, 0
        try:
            added = stream.prepare_shard(shard, max(MIN_FETCH_SECONDS, deadline - time.monotonic()))
            state = _ShardState.LOCAL
        finally:
            # Also after an error: other processes would wait forever for a shard in the state PREPARING.
            with self._cache_lock():
                self.cache_usage += added - reserved
                self._shard_access_times[shard_id] = time.time_ns()
                self._shard_states[shard_id] = state

    def is_remote(self, shard_id: int) -> bool:
        """Return True if a shard is not local; takes no lock."""
        return bool(self._shard_states[shard_id] == _ShardState.REMOTE)

    def shard_of_block(self, block: int) -> int:
        """Return the shard that contains a block."""
        return int(self.spanner[block][0])

    def epoch_order(self, epoch: int, stream: int | None = None) -> NDArray[np.int64]:
        """Return the block ids of an epoch in order, for one stream or all, by Streaming's sampling and py1e shuffle.

        Without shuffling, each stream keeps its stored order and several streams are interleaved evenly.
        """
        units, ids = self.resample_streams(epoch, stream)
        if self.shuffle:
            window = max(self.shuffle_window * self.num_samples // self.num_shards, 2 * int(units.max()))
            return ids[get_shuffle("py1e", units, 1, self.shuffle_seed, epoch, window)]
        stream_of = np.searchsorted(self.sample_offset_per_stream, ids, side="right") - 1
        if stream_of[0] == stream_of[-1]:
            return ids
        counts = np.bincount(stream_of, minlength=self.num_streams)
        place = np.arange(len(ids)) - (counts.cumsum() - counts)[stream_of]
        return ids[np.argsort((place + 0.5) / counts[stream_of], kind="stable")]

    def _claim_shard(self, shard_id: int, size: int) -> bool:
        """Claim a shard for fetching and reserve `size` bytes; False if it is local, claimed or needs space."""
        if self._shard_states[shard_id] == _ShardState.PREPARING:
            return False
        with self._cache_lock():
            if self._shard_states[shard_id] == _ShardState.PREPARING or self._is_local(shard_id):
                return False
            if self.cache_limit and self._shard_states[shard_id] == _ShardState.LOCAL:  # but its file is missing
                self.cache_usage -= self.shards[shard_id].get_raw_size()
                self._shard_states[shard_id] = _ShardState.REMOTE
            if isinstance(self.cache_limit, int):  # Streaming's own may be a string
                while self.cache_usage + size > self.cache_limit:
                    if not (self._shard_states.numpy() == _ShardState.LOCAL).any():
                        return False  # all local shards are still being fetched
                    self._evict_coldest_shard()
            self.cache_usage += size
            self._shard_states[shard_id] = _ShardState.PREPARING
            return True

    def _is_local(self, shard_id: int) -> bool:
        return bool(self._shard_states[shard_id] == _ShardState.LOCAL) and os.path.isfile(self._shard_path(shard_id))

    def _discard_shard(self, shard_id: int, error: Exception, last: bool) -> None:
        path = self._shard_path(shard_id)
        stream, shard = self.streams[self.stream_per_shard[shard_id]], self.shards[shard_id]
        if last or (stream.remote is None and not shard.compression):
            cause = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ShardError(f"{path}: cannot be read ({cause}); the data set is damaged, copy or build it again")
        with self._cache_lock(), suppress(FileNotFoundError):
            if self._shard_states[shard_id] == _ShardState.LOCAL:
                os.remove(path)
                self.cache_usage -= shard.get_raw_size()
                self._shard_states[shard_id] = _ShardState.REMOTE

    def _shard_path(self, shard_id: int) -> str:
        shard = self.shards[shard_id]
        return os.path.join(shard.dirname, shard.split, shard.file_pairs[0][0].basename)

    def _cache_lock(self) -> FileLock:
        # One lock per process and thread: a lock held during a fork would be held in the child forever.
        held = getattr(self._locks, "lock", None)
        if held is None or held[0] != os.getpid():
            held = self._locks.lock = os.getpid(), FileLock(self._cache_filelock_path)
        return held[1]


def _free_shared_memory(owned: Sequence[SharedMemory], opened_by: int) -> None:
    """Free a data set's shared memory when it is dropped or at exit, but not in a fork of its process.

    Must run once: another process may take a freed name at any moment, and a second call would remove its memory.
    """
    if os.getpid() == opened_by:
        for memory in owned:
            with suppress(Exception):
                memory.cleanup()
