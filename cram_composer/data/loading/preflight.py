"""Checks before the clock starts: every shard of a data set is available, and there is disk space for it."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from cram_composer.data.loading.shard_stream import TEMPORARY, is_orphaned, temporary_name
from cram_composer.data.manifest import (
    MANIFEST,
    Manifest,
    Shard,
    check_hash,
    check_tokenizer,
    file_xxh64,
    load_manifest,
    read_index,
)
from cram_composer.errors import CramError
from cram_composer.storage.client import Storage, StorageError
from cram_composer.storage.paths import resolve_inside

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")  # of a data set whose manifest lists none
_HASHING_THREADS = 4
_T = TypeVar("_T")


class RemoteDataset:
    """A data set in object storage: the remote and, if configured, its mirror."""

    def __init__(self, remote: str, mirror: str | None, deadline: float = 120.0) -> None:
        self._storages = [Storage(uri, deadline) for uri in (remote, mirror) if uri is not None]
        self.uri = self._storages[0].uri

    def check_access(self) -> None:
        """Drop a copy that cannot be accessed, with a warning. Raises StorageError if none is left."""
        answering: list[Storage] = []
        for storage in self._storages:
            try:
                storage.check_access()
            except StorageError as error:
                if len(self._storages) == 1 or (storage is self._storages[-1] and not answering):
                    raise
                _warn(f"{error}; using the other copy of the data")
            else:
                answering.append(storage)
        self._storages = answering

    def download(self, name: str, path: Path, load: Callable[[Path], _T]) -> _T:
        """Download a file from the first copy for which `load(path)` does not raise; return its result."""
        for storage in self._storages:
            try:
                storage.download(name, path)
                return load(path)
            except CramError as error:
                if storage is self._storages[-1]:
                    raise
                _warn(f"{error}; using the other copy of the data")
        raise AssertionError("no storage")

    def check_shards(self, shards: dict[str, Shard]) -> None:
        """Check presence and size of every shard by one listing of each copy. Raises CramError."""
        wrong: dict[str, list[str]] = {name: [] for name in shards}
        for storage in self._storages:
            sizes = storage.list_sizes()
            for name, shard in shards.items():
                found = sizes.get(name)
                if found is None:
                    wrong[name].append(f"{storage.object_uri(name)}: missing")
                elif found != shard.stored.bytes:
                    wrong[name].append(f"{storage.object_uri(name)}: {found} bytes instead of {shard.stored.bytes}")
        unavailable = [problems for problems in wrong.values() if len(problems) == len(self._storages)]
        if unavailable:
            more = f" (and {len(unavailable) - 1} more of {len(shards)} shards)" if len(unavailable) > 1 else ""
            raise CramError(f"{'; '.join(unavailable[0])}{more}; copy the data set there again")
        incomplete = [problems for problems in wrong.values() if problems]
        if incomplete:
            _warn(f"{incomplete[0][0]}; {len(incomplete)} of {len(shards)} shards are in only one copy of the data")


def download_metadata(remote: RemoteDataset, root: Path) -> Manifest:
    """Download the manifest, the tokenizer and the indexes; an existing manifest must be identical."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=temporary_name()) as folder:
        scratch = Path(folder)
        try:
            manifest = _download_metadata(remote, root, scratch)
        except StorageError:
            raise
        except CramError as error:  # of a complete but wrong file: name its origin instead of the temporary folder
            raise CramError(str(error).replace(str(scratch), remote.uri)) from None
        for path in sorted(scratch.rglob("*"), key=lambda path: path.name == MANIFEST):  # the manifest last
            if path.is_file():
                target = resolve_inside(root, path.relative_to(scratch).as_posix(), remote.uri)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
    return manifest


def _download_metadata(remote: RemoteDataset, root: Path, scratch: Path) -> Manifest:
    manifest = remote.download(MANIFEST, scratch / MANIFEST, lambda _: load_manifest(scratch))
    kept = root / MANIFEST
    if kept.is_file() and kept.read_bytes() != (scratch / MANIFEST).read_bytes():
        raise CramError(f"{root}: contains a different data set from {remote.uri}; set data.local to another folder")

    def check_file(path: Path) -> None:
        check_hash(scratch, path.relative_to(scratch).as_posix(), manifest)
        if path.name == _TOKENIZER_FILES[0]:
            check_tokenizer(path, manifest)

    listed = [name for name in manifest.get("file_sha256", {}) if name.startswith("tokenizer/")]
    for name in listed or [f"tokenizer/{name}" for name in _TOKENIZER_FILES]:
        remote.download(name, resolve_inside(scratch, name, f"{remote.uri}/{MANIFEST}"), check_file)
    for split in manifest["splits"]:

        def check_index(_: Path, split: str = split) -> list[Shard]:
            return read_index(scratch, split, manifest)

        remote.download(f"{split}/index.json", scratch / split / "index.json", check_index)
    return manifest


def list_shards(root: Path, manifest: Manifest, splits: Sequence[str]) -> dict[str, Shard]:
    """Return every shard of some splits by its stored name below the data set's root."""
    return {f"{split}/{shard.stored.name}": shard for split in splits for shard in read_index(root, split, manifest)}


def clean_cache(root: Path, shards: dict[str, Shard], *, full: bool, fetched: bool) -> tuple[int, int]:
    """Remove temporary files of killed processes and damaged unpacked shards.

    Args:
        full: compare hashes instead of sizes.
        fetched: the shards come from object storage; otherwise stored files are not touched.

    Returns:
        the number of shards kept and their bytes.
    """
    for leftover in [path for path in root.rglob(f"*{TEMPORARY}*") if is_orphaned(path)]:
        with suppress(OSError):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def kept(item: tuple[str, Shard]) -> int:
        name, shard = item
        stored = resolve_inside(root, name, "index.json")
        readable = resolve_inside(root, f"{name.split('/')[0]}/{shard.raw.name}", "index.json")
        if shard.raw is shard.stored and not fetched:
            return 0
        if shard.raw is not shard.stored and fetched:
            stored.unlink(missing_ok=True)  # only the unpacked form is kept
        if not readable.is_file():
            return 0
        if readable.stat().st_size == shard.raw.bytes and (not full or file_xxh64(readable) == shard.raw.xxh64):
            return shard.raw.bytes
        readable.unlink()
        return 0

    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        sizes = list(pool.map(kept, shards.items()))
    return sum(size > 0 for size in sizes), sum(sizes)


def check_disk_space(root: Path, shards: dict[str, Shard], kept: int, cache_limit: int | None) -> None:
    """Check that the disk has space for the missing shards, or for the cache. Raises CramError."""
    total = sum(shard.raw.bytes for shard in shards.values())
    largest = max(
        shard.raw.bytes + (shard.stored.bytes if shard.stored is not shard.raw else 0) for shard in shards.values()
    )
    if cache_limit is not None and cache_limit < 5 * largest:
        raise CramError(
            f"data.cache_limit: must be at least five times the largest shard ({format_bytes(largest)}), "
            f"got {cache_limit / (1 << 20):.0f}mb; set it to {-(-5 * largest // (1 << 20))}mb or more"
        )
    needed = (total if cache_limit is None else min(total, cache_limit)) - kept
    free = shutil.disk_usage(root).free
    if free < needed:
        raise CramError(
            f"{root}: the shards need {format_bytes(needed)} of disk space, {format_bytes(free)} are free; free some "
            "space, set data.local to a folder on another disk, or set data.cache_limit"
        )


def format_bytes(size: int) -> str:
    """Format a size in bytes for messages."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)
