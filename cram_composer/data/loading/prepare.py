"""Prepare the data set of a run before the clock starts: build or download it if necessary, and check it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cram_composer.config import compose
from cram_composer.config.paths import expand
from cram_composer.config.schema.data import DataConfig
from cram_composer.config.schema.data_build import DataBuildConfig
from cram_composer.config.units import parse_bytes, parse_duration
from cram_composer.data.loading.mixture import select_streams
from cram_composer.data.loading.preflight import (
    RemoteDataset,
    check_disk_space,
    clean_cache,
    download_metadata,
    format_bytes,
    list_shards,
)
from cram_composer.data.manifest import MANIFEST, Manifest, held_out_splits, load_manifest, verify_dataset
from cram_composer.data.pipeline.build import build
from cram_composer.errors import CramError
from cram_composer.storage.client import Storage, is_remote


@dataclass(frozen=True)
class PreparedDataset:
    """A finished data set on this machine; with `remote`, shards are fetched as they are read."""

    root: Path
    manifest: Manifest
    remote: str | None = None
    mirror: str | None = None
    deadline: float = 120.0  # seconds per file of the remote
    cache_limit: int | None = None  # bytes
    build_seconds: float = 0.0

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer."""
        return self.root / "tokenizer"


def prepare_dataset(config: DataConfig, local_leader: bool, wait: Callable[[], None]) -> PreparedDataset:
    """Make sure that the data set is available and intact. Raises CramError.

    Only the process with `local_leader` writes; the others `wait` for it.
    """
    started = time.monotonic()
    root, remote = resolve_location(config)
    for key in ("mirror", "cache_limit"):
        if remote is None and getattr(config, key) is not None:
            raise CramError(f"data.{key}: has no effect, because {root} is not in object storage; remove it")
    deadline = parse_duration(config.deadline)
    limit = None if config.cache_limit is None else parse_bytes(config.cache_limit)
    if local_leader:
        if remote is None and not (root / MANIFEST).is_file():
            _build(config, str(root))
        elif config.remote is None and remote is not None and Storage(remote, deadline).size(MANIFEST) is None:
            _build(config, remote)
    build_seconds = time.monotonic() - started
    if local_leader:
        try:
            if remote is None:
                _check_local(config, root)
            else:
                _check_remote(config, root, remote, deadline, limit)
        except OSError as error:
            raise CramError(f"{error.filename or root}: {error.strerror or error}") from error
    wait()
    return PreparedDataset(root, load_manifest(root), remote, config.mirror, deadline, limit, build_seconds)


def resolve_location(config: DataConfig) -> tuple[Path, str | None]:
    """Return the local folder of the data set, and its remote, if any."""
    remote = config.remote
    if remote is None and config.local is None:
        assert config.build is not None  # checked when the run's configuration was validated
        output = compose(DataBuildConfig, config.build, []).config.output
        if not is_remote(output):
            return expand(output), None
        remote = output
    if config.local is not None:
        return expand(config.local), remote
    assert remote is not None
    # A separate cache folder, never the output of a local build.
    return expand("$CRAM_CACHE") / "remote" / hashlib.sha256(remote.encode()).hexdigest()[:16], remote


def _build(config: DataConfig, output: str) -> None:
    if config.build is None:
        raise CramError(f"{output}: no finished data set (data.local); build one with: cram data build YAML")
    if not config.build_if_missing:
        raise CramError(f"{output}: no finished data set; build it first: cram data build {config.build}")
    build(compose(DataBuildConfig, config.build, [f"output={output}"]).config)


def _check_local(config: DataConfig, root: Path) -> None:
    manifest = load_manifest(root)
    full = config.verify == "full"
    verify_dataset(root, manifest, full)
    if manifest["compression"] != "none":
        shards = list_shards(root, manifest, _used_splits(config, manifest))
        _, kept = clean_cache(root, shards, full=full, fetched=False)
        check_disk_space(root, shards, kept, None)


def _check_remote(config: DataConfig, root: Path, remote: str, deadline: float, limit: int | None) -> None:
    started = time.monotonic()
    dataset = RemoteDataset(remote, config.mirror, deadline)
    dataset.check_access()
    manifest = download_metadata(dataset, root)
    shards = list_shards(root, manifest, _used_splits(config, manifest))
    dataset.check_shards(shards)
    count, kept = clean_cache(root, shards, full=config.verify == "full", fetched=True)
    check_disk_space(root, shards, kept, limit)
    size = format_bytes(sum(shard.stored.bytes for shard in shards.values()))
    print(
        f"{dataset.uri}: {len(shards)} shards of {size} available, {count} of them in {root}; "
        f"checked in {time.monotonic() - started:.1f} s",
        flush=True,
    )


def _used_splits(config: DataConfig, manifest: Manifest) -> list[str]:
    return [*(stream.split for stream in select_streams(config, manifest)), *held_out_splits(manifest)]
