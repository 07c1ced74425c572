"""The data build as a whole: a data set that is complete or absent, whatever happens to the processes that make it.

Sources -> stages -> splits -> tokenizer -> packed rows -> ordered rows -> MDS shards -> manifest, in phases that are
cut into tasks by partition (tasks.py). A build that was interrupted goes on with the tasks that are left.

Memory of a task, beyond the interpreter and the libraries, is bounded whatever the size of the corpus, for text in a
natural language: 256 MiB + the larger of 2 x `tokenizer.sample_bytes` (while the tokenizer is trained, once) and
`shuffle_memory_mib`. Text whose words hardly ever repeat makes the training of a tokenizer cost more.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cram_composer.config.paths import expand
from cram_composer.config.schema.data_build import DataBuildConfig, NormaliseConfig, TokenizerConfig
from cram_composer.data.manifest import FORMAT_VERSION, MANIFEST, load_manifest
from cram_composer.data.pipeline.phases import run_pipeline
from cram_composer.data.pipeline.progress import print_status
from cram_composer.data.pipeline.tasks import described as described_error
from cram_composer.data.pipeline.workspace import Workspace
from cram_composer.errors import CramError
from cram_composer.storage.client import Storage, is_remote

# Where a data set is put and how the work on it is done changes nothing about what it is.
_NOT_DESCRIBED = ("output", "overwrite", "jobs", "executor", "slurm", "work")

REMOTE_DEADLINE_SECONDS = 120.0  # for a single request, retries included


def build(config: DataBuildConfig, progress: bool = True) -> Path | str:
    """Build the data set that `config` describes and return its folder, or its URI in object storage.

    A finished one is returned as it is. The work is done in `config.work`, by default `OUTPUT.partial` or, when the
    output is in object storage, a folder in $CRAM_CACHE; what a build that failed or was killed has done stays there
    and the next start goes on with it. Only one process of a machine builds it at a time, others wait. The same text,
    configuration and library versions give the same bytes.

    Raises CramError, one line, for any input or configuration that cannot be used.
    """
    _check(config)
    identity = config_hash(config)
    if is_remote(config.output):
        return _build_remote(config, identity, progress)
    return _build_local(config, identity, progress)


def config_hash(config: DataBuildConfig) -> str:
    """Identifies what a data set is made of."""
    values = json.dumps([FORMAT_VERSION, described(config)], sort_keys=True)
    return hashlib.sha256(values.encode()).hexdigest()[:16]


def described(config: DataBuildConfig) -> dict[str, Any]:
    """The configuration as nested dicts, less what does not change the data set."""
    return {key: value for key, value in config.model_dump(mode="json").items() if key not in _NOT_DESCRIBED}


def _check(config: DataBuildConfig) -> None:
    for key in ("name", "output", "sources"):
        if not getattr(config, key):
            raise CramError(f"data build: '{key}' is not set")
    unused = (TokenizerConfig(path=config.tokenizer.path), NormaliseConfig())
    if config.tokenizer.path is not None and (config.tokenizer, config.normalise) != unused:
        raise CramError(
            "tokenizer.path: that tokenizer is used as it is; remove the other keys of tokenizer and normalise"
        )
    for source in config.sources:
        if source.stream is not None and not source.stream.replace("-", "").replace("_", "").isalnum():
            raise CramError(f"source: stream '{source.stream}' must be letters, digits, '-' and '_'")


def _build_local(config: DataBuildConfig, identity: str, progress: bool) -> Path:
    root = Path(os.path.abspath(expand(config.output)))
    work = Workspace(
        Path(os.path.abspath(expand(config.work))) if config.work else root.with_name(f"{root.name}.partial")
    )
    if root == work.root or root in work.root.parents or work.root in root.parents:
        raise CramError(f"work: {work.root} and the output {root} must not be in each other; choose another folder")
    with _errors_in_one_line(work.root):
        if not _finished(root, config, identity, progress):
            root.parent.mkdir(parents=True, exist_ok=True)
            lock = root.with_name(f".{root.name}.lock")
            with _lock(lock, str(root), progress), _work_lock(work, config, progress):
                if not _finished(root, config, identity, progress):
                    _check_free(root)
                    _work(work, config, identity, progress)
                    _move(work, root)
    print_status(progress, f"{root} is finished")
    return root


def _build_remote(config: DataBuildConfig, identity: str, progress: bool) -> str:
    uri = config.output.rstrip("/")
    place = expand(config.work) if config.work else expand("$CRAM_CACHE") / "work" / f"{config.name}-{_digest(uri)}"
    work = Workspace(Path(os.path.abspath(place)))
    storage = Storage(uri, REMOTE_DEADLINE_SECONDS)
    with _errors_in_one_line(work.root):
        work.root.parent.mkdir(parents=True, exist_ok=True)
        with _lock(_lock_of(work), uri, progress):
            storage.check_access(write=True)
            with tempfile.TemporaryDirectory() as scratch:
                if storage.size(MANIFEST) is not None:
                    storage.download(MANIFEST, Path(scratch) / MANIFEST)
                if _finished(Path(scratch), config, identity, progress, uri):
                    return uri
            _work(work, config, identity, progress)
    print_status(progress, f"{uri} is finished")
    return uri


def _lock_of(work: Workspace) -> Path:
    return work.root.with_name(f".{work.root.name}.lock")


@contextmanager
def _work_lock(work: Workspace, config: DataBuildConfig, progress: bool) -> Iterator[None]:
    """Where the work's place was chosen, two builds with different outputs may have chosen the same."""
    if not config.work:
        yield
        return
    work.root.parent.mkdir(parents=True, exist_ok=True)
    with _lock(_lock_of(work), str(work.root), progress):
        yield


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _finished(root: Path, config: DataBuildConfig, identity: str, progress: bool, name: str | None = None) -> bool:
    """Whether the data set is there already; raises CramError for one of another configuration."""
    if config.overwrite or not (root / MANIFEST).is_file():
        return False
    try:
        found = load_manifest(root)["config_hash"]
    except CramError as error:  # of another format, or damaged
        raise CramError(f"{error}; to replace it, pass overwrite=true") from None
    if found != identity:
        raise CramError(
            f"{name or root}: holds a data set of another configuration ({found}, not {identity}); choose another "
            "output or pass overwrite=true"
        )
    print_status(progress, f"{name or root} is finished already (configuration {identity})")
    return True


@contextmanager
def _lock(path: Path, what: str, progress: bool) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print_status(progress, f"another process is building {what}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _errors_in_one_line(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise described_error(error, root) from error


def _check_free(root: Path) -> None:
    if root.exists() and not (root / MANIFEST).is_file() and (not root.is_dir() or any(root.iterdir())):
        raise CramError(f"{root}: is there already and is not a data set; choose another output")


def _work(work: Workspace, config: DataBuildConfig, identity: str, progress: bool) -> None:
    """Run the pipeline; what it leaves when it fails is kept if there is anything in it to go on with."""
    try:
        run_pipeline(work, config, described(config), identity, progress)
    except BaseException:
        if work.has_results():
            print_status(progress, f"what was done until now is kept in {work.root}; the same command goes on with it")
        elif work.read_plan() is not None:
            work.remove()
        raise


def _move(work: Workspace, root: Path) -> None:
    """Put the finished data set in its place in one rename, and remove the rest."""
    new, old = (root.with_name(f".{root.name}.cram-{name}") for name in ("new", "old"))
    for left_over in (new, old):
        if left_over.exists():
            shutil.rmtree(left_over)
    shutil.move(work.out, new)  # copies if the work is on another disk
    if root.exists():
        os.replace(root, old)
    os.replace(new, root)
    work.remove()
    if old.exists():
        shutil.rmtree(old)
