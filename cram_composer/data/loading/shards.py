"""The blocks of a data set by number, their shards fetched and evicted as need be.

Streaming supplies the shard format, the state of the shards shared by all processes of a machine, the eviction and the
sampling of epochs. What it does not supply in 0.13 (docs/upstream.md) is done here: a shard that cannot be had is an
error in the process that asks for it, and in every process that waits for it, within a deadline.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from streaming import StreamingDataset
from streaming.base.dataset import _ShardState
from streaming.base.shuffle import get_shuffle

from cram_composer.data.loading.shard_stream import LAST_TRY_SECONDS, ShardError, ShardStream
from cram_composer.data.manifest import COLUMN
from cram_composer.errors import CramError

_TICK_SECONDS = 0.02
_READS = 8  # a shard may be evicted between being fetched and being read
# A shard's blocks are spread over this many shards' worth of an epoch: so many have to be there at a time.
_WINDOW_SHARDS = 16


class Blocks(StreamingDataset):
    """The blocks of one or more streams as an array: `blocks[i]` is [rows, sequence_length]. It is never iterated.

    Safe for any number of processes and threads of a machine; all ranks must open it together. `block_rows` are the
    rows of each block, [blocks], where they are known. Raises ShardError from every access that cannot be served.
    """

    def __init__(
        self,
        streams: Sequence[ShardStream],
        block_rows: NDArray[np.int64] | None = None,
        *,
        shuffle: bool = False,
        seed: int = 0,
        cache_limit: int | None = None,
    ) -> None:
        super().__init__(
            streams=streams,
            shuffle=shuffle,
            shuffle_seed=seed,
            # One canonical node whatever the hardware: the order does not depend on how many machines read.
            num_canonical_nodes=1,
            batch_size=1,
            cache_limit=cache_limit,
        )
        if block_rows is not None and len(block_rows) != self.num_samples:
            raise CramError(
                f"{streams[0].local}: the index lists {self.num_samples} blocks, the manifest {len(block_rows)}"
            )
        self.block_rows = block_rows
        self._patience = max(stream.patience for stream in streams)
        # Streaming would take a lock file of its own name, left by a kill, for a run that is going on.
        places = "\n".join(sorted(os.path.abspath(os.path.join(s.local, s.split)) for s in streams))
        name = f"cram-shards-{os.getuid()}-{hashlib.sha256(places.encode()).hexdigest()[:16]}.lock"
        self._cache_filelock_path = os.path.join(tempfile.gettempdir(), name)
        self._locks = threading.local()
        self._opened_by = os.getpid()
        if cache_limit is not None and self._unique_rank_world.is_local_leader:
            with self._lock():
                while self.cache_usage > cache_limit and (self._shard_states.numpy() == _ShardState.LOCAL).any():
                    self._evict_coldest_shard()

    def __del__(self) -> None:
        super().__del__()
        # Streaming keeps its shared memory, and files open, until the process ends. Where ranks share it, it has to
        # stay: one that is slower would find the names of the next data set taken.
        if getattr(self, "_opened_by", None) != os.getpid() or self._unique_rank_world.num_ranks > 1:
            return
        shared = [self._shared_barrier._arr, self._next_epoch.arr, self._cache_usage.arr]
        for memory in (self._locals_shm, *(one.shm for one in (*shared, self._shard_states, self._shard_access_times))):
            atexit.unregister(memory.cleanup)
            with suppress(Exception):
                memory.cleanup()

    def get_item(self, sample_id: int, retry: int = _READS) -> NDArray:
        """Block `sample_id`; its shard is fetched if it is not there."""
        shard_id, index = self.spanner[sample_id]
        shard_id = int(shard_id)
        for attempt in range(retry):
            try:
                with np.errstate(over="ignore"):  # of the offsets in a damaged shard
                    rows: NDArray = self.shards[shard_id][index][COLUMN]
                if self.block_rows is not None and len(rows) != self.block_rows[sample_id]:
                    raise ValueError(f"a block of {len(rows)} rows instead of {self.block_rows[sample_id]}")
                self._shard_access_times[shard_id] = time.time_ns()
                return rows
            except FileNotFoundError:
                self.prepare_shard(shard_id)
            except Exception as error:  # a damaged shard fails in any of the ways that decoding has
                self._discard(shard_id, error, last=attempt > 0)
        raise ShardError(
            f"{self._file(shard_id)}: was evicted {retry} times before it could be read; raise data.cache_limit"
        )

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """See that a shard is there, fetching it unless another process is at it already. Raises ShardError."""
        ends = time.monotonic() + self._patience
        stream, shard = self.streams[self.stream_per_shard[shard_id]], self.shards[shard_id]
        reserved = shard.get_max_size()
        while not self._claim(shard_id, reserved):
            if not blocking or self._is_there(shard_id):
                return
            if time.monotonic() > ends + LAST_TRY_SECONDS:
                raise ShardError(
                    f"{self._file(shard_id)}: nobody could fetch it, or make room for it, in {self._patience:.0f} s; "
                    "raise data.deadline"
                )
            time.sleep(_TICK_SECONDS)
        state, added = _ShardState.REMOTE, 0
        try:
            added = stream.prepare_shard(shard, max(LAST_TRY_SECONDS, ends - time.monotonic()))
            state = _ShardState.LOCAL
        finally:
            # Whatever happened: a shard left as "preparing" would be waited for by everybody, for ever.
            with self._lock():
                self.cache_usage += added - reserved
                self._shard_access_times[shard_id] = time.time_ns()
                self._shard_states[shard_id] = state

    def is_remote(self, shard_id: int) -> bool:
        """Whether a shard has yet to be asked for; a glance that takes no lock."""
        return bool(self._shard_states[shard_id] == _ShardState.REMOTE)

    def shard_of(self, block: int) -> int:
        """The shard that a block is in."""
        return int(self.spanner[block][0])

    def epoch_order(self, epoch: int, stream: int | None = None) -> NDArray[np.int64]:
        """The blocks of an epoch in order, of one stream or of all: Streaming's sampling and py1e shuffle.

        In stored order each stream keeps its own, and several are interleaved evenly.
        """
        units, ids = self.resample_streams(epoch, stream)
        if self.shuffle:
            window = max(self._window_shards() * self.num_samples // self.num_shards, 2 * int(units.max()))
            return ids[get_shuffle("py1e", units, 1, self.shuffle_seed, epoch, window)]
        stream_of = np.searchsorted(self.sample_offset_per_stream, ids, side="right") - 1
        if stream_of[0] == stream_of[-1]:
            return ids
        counts = np.bincount(stream_of, minlength=self.num_streams)
        place = np.arange(len(ids)) - (counts.cumsum() - counts)[stream_of]
        return ids[np.argsort((place + 0.5) / counts[stream_of], kind="stable")]

    def _window_shards(self) -> int:
        if not self.cache_limit:
            return _WINDOW_SHARDS
        # What is being fetched and what is about to be evicted take room too.
        return max(2, min(_WINDOW_SHARDS, self.cache_limit // (2 * self.max_shard_size_across_all_streams)))

    def _claim(self, shard_id: int, size: int) -> bool:
        """Make the shard ours to fetch, with room for `size` bytes; False if it is not to be had, or not yet."""
        if self._shard_states[shard_id] == _ShardState.PREPARING:
            return False
        with self._lock():
            if self._shard_states[shard_id] == _ShardState.PREPARING or self._is_there(shard_id):
                return False
            if self.cache_limit and self._shard_states[shard_id] == _ShardState.LOCAL:  # but its file is gone
                self.cache_usage -= self.shards[shard_id].get_raw_size()
                self._shard_states[shard_id] = _ShardState.REMOTE
            if isinstance(self.cache_limit, int):  # Streaming's own may be text
                while self.cache_usage + size > self.cache_limit:
                    if not (self._shard_states.numpy() == _ShardState.LOCAL).any():
                        return False  # all that is there is being fetched; some of it can go when it is whole
                    self._evict_coldest_shard()
            self.cache_usage += size
            self._shard_states[shard_id] = _ShardState.PREPARING
            return True

    def _is_there(self, shard_id: int) -> bool:
        return bool(self._shard_states[shard_id] == _ShardState.LOCAL) and os.path.isfile(self._file(shard_id))

    def _discard(self, shard_id: int, error: Exception, last: bool) -> None:
        path = self._file(shard_id)
        stream, shard = self.streams[self.stream_per_shard[shard_id]], self.shards[shard_id]
        if last or (stream.remote is None and not shard.compression):
            cause = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ShardError(f"{path}: cannot be read ({cause}); the data set is damaged, copy or build it again")
        with self._lock(), suppress(FileNotFoundError):
            if self._shard_states[shard_id] == _ShardState.LOCAL:
                os.remove(path)
                self.cache_usage -= shard.get_raw_size()
                self._shard_states[shard_id] = _ShardState.REMOTE

    def _file(self, shard_id: int) -> str:
        shard = self.shards[shard_id]
        return os.path.join(shard.dirname, shard.split, shard.file_pairs[0][0].basename)

    def _lock(self) -> FileLock:
        # One per process and thread: a lock that was held while a process forked would be held in the child for ever.
        held = getattr(self._locks, "lock", None)
        if held is None or held[0] != os.getpid():
            held = self._locks.lock = os.getpid(), FileLock(self._cache_filelock_path)
        return held[1]
