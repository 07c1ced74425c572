"""The data set of a run: built or fetched if need be, and checked, before the clock starts."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cram_composer.config import compose
from cram_composer.config.data_schema import DataBuildConfig
from cram_composer.config.paths import expand
from cram_composer.config.schema import DataConfig
from cram_composer.data.build import build
from cram_composer.data.manifest import MANIFEST, Manifest, load_manifest, verify
from cram_composer.errors import CramError

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class DataSet:
    """A finished data set on this machine (with `remote`, its shards come as they are read)."""

    root: Path
    manifest: Manifest
    remote: str | None
    build_seconds: float

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer."""
        return self.root / "tokenizer"


def prepare(config: DataConfig, local_leader: bool, wait: Callable[[], None]) -> DataSet:
    """Make sure that the data set is there and whole. Raises CramError, one line.

    Only the process with `local_leader` writes; the others `wait` for it.
    """
    started = time.monotonic()
    root = _root(config)
    if local_leader:
        if config.remote is not None:
            _fetch_description(config.remote, root)
        elif not (root / MANIFEST).is_file():
            _build(config, root)
    wait()
    manifest = load_manifest(root)
    build_seconds = time.monotonic() - started
    if config.remote is None and local_leader:
        verify(root, manifest, full=config.verify == "full")
    return DataSet(root, manifest, config.remote, build_seconds)


def _root(config: DataConfig) -> Path:
    if config.local is not None:
        return expand(config.local)
    if config.remote is not None:
        # A cache of its own: never the folder that a local build is in.
        return expand("$CRAM_CACHE") / "remote" / hashlib.sha256(config.remote.encode()).hexdigest()[:16]
    assert config.build is not None  # config.checks.check_run
    return expand(compose(DataBuildConfig, config.build, []).config.output)


def _build(config: DataConfig, root: Path) -> None:
    if config.build is None:
        raise CramError(f"{root}: no finished data set there (data.local); build one with `cram data build`")
    if not config.build_if_missing:
        raise CramError(f"{root}: no finished data set there; build it first: cram data build {config.build}")
    composed = compose(DataBuildConfig, config.build, [f"output={root}"])
    build(composed.config)


def _fetch_description(remote: str, root: Path) -> None:
    """Fetch the manifest and the tokenizer; a manifest that is there already must be the same."""
    (root / "tokenizer").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        fetched = Path(scratch) / MANIFEST
        _download(f"{remote.rstrip('/')}/{MANIFEST}", fetched)
        if (root / MANIFEST).is_file() and (root / MANIFEST).read_bytes() != fetched.read_bytes():
            raise CramError(f"{root}: holds another data set than {remote}; choose another folder with data.local")
        for name in _TOKENIZER_FILES:
            _download(f"{remote.rstrip('/')}/tokenizer/{name}", Path(scratch) / name)
            os.replace(Path(scratch) / name, root / "tokenizer" / name)
        os.replace(fetched, root / MANIFEST)


def _download(remote: str, local: Path) -> None:
    from streaming.base.storage import CloudDownloader

    try:
        CloudDownloader.direct_download(remote, str(local), timeout=60.0)
    except Exception as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CramError(f"data.remote: cannot fetch {remote}: {cause}") from error
