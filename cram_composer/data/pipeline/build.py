"""Build a data set, which is complete or absent even if processes are killed.

Sources -> stages -> splits -> tokenizer -> packed rows -> ordered rows -> MDS shards -> manifest, in phases that are
cut into tasks by partition (tasks.py). An interrupted build resumes with the remaining tasks.

For natural-language text of any size, the memory of a task beyond the interpreter and the libraries is bounded by
256 MiB + the larger of 2 x `tokenizer.sample_bytes` (only while the tokenizer is trained) and `shuffle_memory_mib`.
Training a tokenizer takes more memory on text whose words hardly ever repeat.
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
from cram_composer.data.pipeline.tasks import one_line_error
from cram_composer.data.pipeline.workspace import Workspace
from cram_composer.errors import CramError
from cram_composer.storage.client import Storage, is_remote

# Settings that do not change the content of a data set.
_NOT_CONTENT = (
    "language",
    "output",
    "overwrite",
    "jobs",
    "executor",
    "slurm",
    "work",
    "on_bad_record",
    "max_bad_records",
)

REMOTE_DEADLINE_SECONDS = 120.0  # for a single request, retries included


def build(config: DataBuildConfig, progress: bool = True) -> Path | str:
    """Build the data set of `config` and return its folder, or its URI in object storage.

    A finished data set is returned unchanged. The work folder is `config.work`, by default `OUTPUT.partial` or, if the
    output is in object storage, a folder in $CRAM_CACHE. It keeps the finished tasks of a build that failed or was
    killed, and the next start resumes from them. One process of a machine builds a data set at a time; others wait. The
    same text, configuration and library versions give the same bytes.

    Raises:
        CramError: the input or the configuration cannot be used.
    """
    _check(config)
    identity = config_hash(config)
    if is_remote(config.output):
        return _build_remote(config, identity, progress)
    return _build_local(config, identity, progress)


def config_hash(config: DataBuildConfig) -> str:
    """Return the hash that identifies the content of a data set."""
    values = json.dumps([FORMAT_VERSION, described(config)], sort_keys=True)
    return hashlib.sha256(values.encode()).hexdigest()[:16]


def described(config: DataBuildConfig) -> dict[str, Any]:
    """Return the configuration as nested dicts, without settings that do not change the data set."""
    found = {key: value for key, value in config.model_dump(mode="json").items() if key not in _NOT_CONTENT}
    # Data sets from before there were these keys keep their hash.
    for entry in (found, *found["sources"], found["validation"] or {}, found["packing"]):
        for key in ("validation", "held_out", "text_columns", "text_suffixes", "segments", "max_words"):
            if not entry.get(key):
                entry.pop(key, None)
    return found


def _check(config: DataBuildConfig) -> None:
    for key in ("name", "output", "sources"):
        if not getattr(config, key):
            raise CramError(f"data build: '{key}' is not set")
    unused = (TokenizerConfig(path=config.tokenizer.path), NormaliseConfig())
    if config.tokenizer.path is not None and (config.tokenizer, config.normalise) != unused:
        raise CramError(
            "tokenizer.path: an existing tokenizer is used unchanged; remove the other keys of tokenizer and normalise"
        )
    if config.on_bad_record == "fail" and config.max_bad_records != DataBuildConfig().max_bad_records:
        raise CramError("max_bad_records: has no effect with on_bad_record=fail; set on_bad_record=skip or remove it")
    if config.ordering == "fragment" and config.packing.segments == "sentence":
        raise CramError(
            "ordering: fragment counts [SEP], which packing.segments=sentence puts after sentences; change one of them"
        )
    if config.executor == "slurm" and config.jobs is not None:
        raise CramError("jobs: has no effect with executor=slurm; set slurm.slurm_array_parallelism or remove it")
    if config.executor == "local" and config.slurm:
        raise CramError("slurm: has no effect with executor=local; set executor=slurm or remove it")
    if config.validation is not None and config.validation_fraction != DataBuildConfig().validation_fraction:
        raise CramError("validation_fraction: has no effect with validation; remove one of them")


def _build_local(config: DataBuildConfig, identity: str, progress: bool) -> Path:
    root = Path(os.path.abspath(expand(config.output)))
    work = Workspace(
        Path(os.path.abspath(expand(config.work))) if config.work else root.with_name(f"{root.name}.partial")
    )
    if root == work.root or root in work.root.parents or work.root in root.parents:
        raise CramError(f"work: {work.root} and the output {root} must not contain each other; choose another folder")
    with _one_line_errors(work.root):
        if _is_finished(root, config, identity, progress):
            return root
        root.parent.mkdir(parents=True, exist_ok=True)
        lock = root.with_name(f".{root.name}.lock")
        with _lock(lock, str(root), progress), _work_lock(work, config, progress):
            if _is_finished(root, config, identity, progress):
                return root
            _check_free(root)
            _build_in(work, config, identity, progress)
            _move_into_place(work, root)
    print_status(progress, f"{root} is finished")
    return root


def _build_remote(config: DataBuildConfig, identity: str, progress: bool) -> str:
    uri = config.output.rstrip("/")
    folder = expand(config.work) if config.work else expand("$CRAM_CACHE") / "work" / f"{config.name}-{_digest(uri)}"
    work = Workspace(Path(os.path.abspath(folder)))
    storage = Storage(uri, REMOTE_DEADLINE_SECONDS)
    with _one_line_errors(work.root):
        work.root.parent.mkdir(parents=True, exist_ok=True)
        with _lock(_lock_of(work), uri, progress):
            storage.check_access(write=True)
            with tempfile.TemporaryDirectory() as scratch:
                if storage.size(MANIFEST) is not None:
                    storage.download(MANIFEST, Path(scratch) / MANIFEST)
                if _is_finished(Path(scratch), config, identity, progress, uri):
                    return uri
            _build_in(work, config, identity, progress)
    print_status(progress, f"{uri} is finished")
    return uri


def _lock_of(work: Workspace) -> Path:
    return work.root.with_name(f".{work.root.name}.lock")


@contextmanager
def _work_lock(work: Workspace, config: DataBuildConfig, progress: bool) -> Iterator[None]:
    """Lock a work folder chosen by the user, which builds with other outputs may use too."""
    if not config.work:
        yield
        return
    work.root.parent.mkdir(parents=True, exist_ok=True)
    with _lock(_lock_of(work), str(work.root), progress):
        yield


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _is_finished(root: Path, config: DataBuildConfig, identity: str, progress: bool, name: str | None = None) -> bool:
    """Return True if the data set exists. Raises CramError for one of another configuration."""
    if config.overwrite or not (root / MANIFEST).is_file():
        return False
    try:
        found = load_manifest(root)["config_hash"]
    except CramError as error:  # of another format, or damaged
        raise CramError(f"{error}; to replace it, pass overwrite=true") from None
    if found != identity:
        raise CramError(
            f"{name or root}: contains a data set of another configuration ({found}, not {identity}); choose another "
            "output or pass overwrite=true"
        )
    print_status(progress, f"{name or root} is already finished (configuration {identity})")
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
def _one_line_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise one_line_error(error, root) from error


def _check_free(root: Path) -> None:
    if root.exists() and not (root / MANIFEST).is_file() and (not root.is_dir() or any(root.iterdir())):
        raise CramError(f"{root}: exists and is not a data set; choose another output")


def _build_in(work: Workspace, config: DataBuildConfig, identity: str, progress: bool) -> None:
    """Run the pipeline; if it fails, keep the work folder if any task is done."""
    try:
        run_pipeline(work, config, described(config), identity, progress)
    except BaseException:
        if work.has_results():
            print_status(progress, f"finished tasks are kept in {work.root}; run the same command to resume")
        elif work.read_plan() is not None:
            work.remove()
        raise


def _move_into_place(work: Workspace, root: Path) -> None:
    """Move the finished data set to its place in one rename, and remove the work folder."""
    new, old = (root.with_name(f".{root.name}.cram-{name}") for name in ("new", "old"))
    for left_over in (new, old):
        if left_over.exists():
            shutil.rmtree(left_over)
    shutil.move(work.out, new)  # copies if the work folder is on another disk
    if root.exists():
        os.replace(root, old)
    os.replace(new, root)
    work.remove()
    if old.exists():
        shutil.rmtree(old)
