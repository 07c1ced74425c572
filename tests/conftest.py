"""Shared fixtures: a small data set from the real build, runs that take seconds, S3 servers and a Slurm stand-in."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from transformers import dynamic_module_utils

from tests.data.data_sets import close_shared_memory, write_data_set
from tests.servers import Bucket, S3Server, rclone_server, seaweed_server
from tests.tiny_runs import TinyRuns


@dataclass
class SlurmHere:
    """Record of the requests to a stand-in for Slurm: parameters, and the number of jobs of each array."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)


SLURM_COMMANDS = {"sacct", "salloc", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun"}
REPOSITORY = Path(__file__).resolve().parent.parent

# Settings for a run of seconds, which tests behaviour, not the quality of the model.
SMALL = [
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.intermediate_size=64",
    "train.batch_size=32",
    "train.device_train_microbatch_size=16",
    "train.compile=off",
    "train.precision=fp32",
    "eval.interval=0",
    "eval.rows=32",
    "eval.final_rows=32",
    "eval.batch_size=16",
    "logging.tensorboard=false",
    "export.enabled=false",
]


def write_text(path: Path, documents: int, seed: int = 0) -> None:
    """Write documents that a model can learn: each word determines the possible next words."""
    rng = random.Random(seed)
    syllables = ["ba", "ke", "lo", "mi", "nu", "ra", "so", "ti", "vu", "we"]
    words = [a + b for a in syllables for b in syllables]
    after = {word: rng.sample(words, 4) for word in words}
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(documents):
            word = rng.choice(words)
            text = []
            for _ in range(rng.randint(40, 120)):
                text.append(word)
                word = rng.choice(after[word])
            file.write(" ".join(text) + ".\n")


def pytest_configure(config: pytest.Config) -> None:
    """Raise the limit of open files, and keep the code of exports that transformers copies out of the user's cache.

    A test process with a thousand data sets would exceed the limit.
    """
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
    modules = tempfile.mkdtemp(prefix="cram-modules-")
    os.environ["HF_MODULES_CACHE"] = dynamic_module_utils.HF_MODULES_CACHE = modules
    config.add_cleanup(lambda: shutil.rmtree(modules, ignore_errors=True))


@pytest.fixture(autouse=True)
def _close_shared_memory() -> Iterator[None]:
    yield
    close_shared_memory()


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a data set with `build_tiny_data`; return its root."""
    return build_tiny_data(tmp_path_factory.mktemp("data"))


def build_tiny_data(folder: Path, **settings: Any) -> Path:
    """Build a data set in `folder`, about 1,200 training rows of 32 tokens in blocks of 16; return its root."""
    from cram_composer.config.schema.data_build import (
        DataBuildConfig,
        FilesConfig,
        PackingConfig,
        TokenizerConfig,
    )
    from cram_composer.data.pipeline.build import build

    write_text(folder / "text.txt", documents=500)
    settings = {"output": str(folder / "tiny")} | settings
    config = DataBuildConfig(
        name="tiny",
        sources=[FilesConfig(paths=[str(folder / "text.txt")], document="line")],
        tokenizer=TokenizerConfig(vocab_size=200),
        packing=PackingConfig(sequence_length=32, block_rows=16),
        validation_fraction=0.1,
        **settings,
    )
    return build(config, progress=False)


Train = Callable[..., "subprocess.CompletedProcess[str]"]


def train_command(data: Path, runs: Path, overrides: list[str], ranks: int | None = None) -> list[str]:
    """Return a command that trains a small model on `data`, with `ranks` processes under Composer's launcher."""
    launcher = [sys.executable] if ranks is None else [str(Path(sys.executable).parent / "composer"), "-n", str(ranks)]
    settings = [*SMALL, f"data.local={data}", f"runs_dir={runs}", *overrides]
    return [*launcher, str(REPOSITORY / "train.py"), str(REPOSITORY / "yamls" / "cram-cpu.yaml"), *settings]


def environment() -> dict[str, str]:
    """Return the environment of a run with one thread, for a fixed summation order and fast parallel tests."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@pytest.fixture
def train(tiny_data: Path, tiny_run: TinyRuns, tmp_path: Path) -> Train:
    """Return a function that trains to the end in the run folder tmp_path / run_name.

    Without ranks, train.py runs in a process that is forked after the imports.
    """

    def run(*overrides: str, ranks: int | None = None) -> subprocess.CompletedProcess[str]:
        command = train_command(tiny_data, tmp_path, list(overrides), ranks)
        if ranks is None:
            return tiny_run.run_script(command[1:], environment())
        return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Start a SeaweedFS shared by the tests of this process; `s3` provides buckets."""
    server = seaweed_server(tmp_path_factory.mktemp("seaweed")).start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Start an rclone S3 server shared by the tests of this process; `rclone_s3` provides buckets."""
    server = rclone_server(tmp_path_factory.mktemp("rclone")).start()
    yield server
    server.stop()


@pytest.fixture
def s3(seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """Create an empty bucket on SeaweedFS and point this process's environment at the server.

    A test may stop or pause the server and change its credentials; they are restored for the next test.
    """
    yield from _bucket(seaweed, monkeypatch)


@pytest.fixture
def rclone_s3(rclone: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """Create an empty bucket on rclone's server, as `s3`."""
    yield from _bucket(rclone, monkeypatch)


def _bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    server.start()
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    credentials = server.access_key, server.secret_key
    yield server.new_bucket()
    server.resume()
    if (server.access_key, server.secret_key) != credentials:
        server.put_credentials(*credentials)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRuns:
    """Return a trainer of ten-step runs on random rows of 16 tokens."""
    data = write_data_set(tmp_path_factory.mktemp("made-up") / "data")
    return TinyRuns(data, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def plain_run(tiny_run: TinyRuns) -> Path:
    """Train the baseline run that recipes are compared with."""
    return tiny_run("plain")


@pytest.fixture
def no_slurm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hide the commands of a Slurm on this machine; return the folder that is PATH, for stand-ins."""
    folder = tmp_path_factory.mktemp("bin")
    for place in map(Path, os.environ["PATH"].split(os.pathsep)):
        for path in place.iterdir() if place.is_dir() else ():
            link = folder / path.name
            if path.name not in SLURM_COMMANDS and not link.is_symlink():
                link.symlink_to(path)
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def slurm_here(monkeypatch: pytest.MonkeyPatch) -> SlurmHere:
    """Replace Slurm by submitit's local executor, with a process for every job."""
    import submitit

    found = SlurmHere()

    class Local(submitit.AutoExecutor):
        def __init__(self, folder: Path, cluster: str) -> None:
            assert cluster == "slurm"
            super().__init__(folder=folder, cluster="local")

        def update_parameters(self, **settings: Any) -> None:
            found.asked.append(settings)
            super().update_parameters(timeout_min=settings["timeout_min"])  # the default limit is 2 minutes

        def submit_array(self, fns: Sequence[Callable[[], Any]]) -> Any:
            found.sizes.append(len(fns))
            return super().submit_array(fns)

    monkeypatch.setattr(submitit, "AutoExecutor", Local)
    return found
