"""The data build as a whole: one folder that is complete or absent, whatever happens to the process that makes it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cram_composer.config.data_schema import DataBuildConfig, NormaliseConfig, TokenizerConfig
from cram_composer.config.paths import expand
from cram_composer.data.assemble import assemble, described
from cram_composer.data.manifest import FORMAT_VERSION, MANIFEST, load_manifest
from cram_composer.data.progress import say
from cram_composer.errors import CramError


def build(config: DataBuildConfig, progress: bool = True) -> Path:
    """Build the data set that `config` describes and return its folder; a finished one is returned as it is.

    The work is done in `OUTPUT.partial`, which becomes OUTPUT at the end; what an interrupted build left there is
    thrown away by the next. Only one process builds at a time, others wait for it. The same text, configuration and
    library versions give the same bytes; cram_composer.data.assemble states the memory it takes.

    Raises CramError, one line, for any input or configuration that cannot be used.
    """
    _check(config)
    root = Path(os.path.abspath(expand(config.output)))
    identity = config_hash(config)
    try:
        if not _finished(root, config, identity, progress):
            root.parent.mkdir(parents=True, exist_ok=True)
            with _lock(root, progress):
                if not _finished(root, config, identity, progress):
                    _build(root, config, identity, progress)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise CramError(f"{root.parent}: the disk is full; free some space or choose another output") from error
        raise CramError(f"{error.filename or root}: {error.strerror or error}") from error
    return root


def config_hash(config: DataBuildConfig) -> str:
    """Identifies what a data set is made of; where it is put is no part of it."""
    values = json.dumps([FORMAT_VERSION, described(config)], sort_keys=True)
    return hashlib.sha256(values.encode()).hexdigest()[:16]


def _check(config: DataBuildConfig) -> None:
    for key in ("name", "output", "sources"):
        if not getattr(config, key):
            raise CramError(f"data build: '{key}' is not set")
    unused = (TokenizerConfig(path=config.tokenizer.path), NormaliseConfig())
    if config.tokenizer.path is not None and (config.tokenizer, config.normalise) != unused:
        raise CramError(
            "tokenizer.path: that tokenizer is used as it is; remove the other keys of tokenizer and normalise"
        )


def _finished(root: Path, config: DataBuildConfig, identity: str, progress: bool) -> bool:
    if config.overwrite or not (root / MANIFEST).is_file():
        return False
    found = load_manifest(root)["config_hash"]
    if found != identity:
        raise CramError(
            f"{root}: holds a data set of another configuration ({found}, not {identity}); choose another output or "
            "pass overwrite=true"
        )
    say(progress, f"{root} is finished already (configuration {identity})")
    return True


@contextmanager
def _lock(root: Path, progress: bool) -> Iterator[None]:
    lock = FileLock(root.with_name(f".{root.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(progress, f"another process is building {root}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(root: Path, config: DataBuildConfig, identity: str, progress: bool) -> None:
    if root.exists() and not (root / MANIFEST).is_file() and (not root.is_dir() or any(root.iterdir())):
        raise CramError(f"{root}: is there already and is not a data set; choose another output")
    partial, old = (root.with_name(f"{root.name}.{suffix}") for suffix in ("partial", "old"))
    for left_over in (partial, old):
        shutil.rmtree(left_over, ignore_errors=True)
    partial.mkdir()
    try:
        assemble(partial, config, identity, progress)
        if root.exists():
            os.replace(root, old)
        os.replace(partial, root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    say(progress, f"{root} is finished")
