"""A real training run on a tiny data set on a real server, into which faults are injected."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import environment, train_command
from tests.servers import Bucket, S3Server
from tests.services.object_stores import ObjectBucket, ObjectServer

STEPS = 120  # less than an epoch; each takes one block, which is one shard
ROWS = 8  # per step
DEADLINE = 6.0  # seconds, data.deadline unless a fault says otherwise
SETTINGS = [
    f"budget={{steps: {STEPS}, wall: null}}",
    f"train.batch_size={ROWS}",
    f"train.device_train_microbatch_size={ROWS}",
    "algorithms.batch_size_ramp=null",
    "model.num_hidden_layers=1",
    "train.threads=1",  # two threads would wait for each other on shared cores
    "checkpoint.interval=0.1s",
    "logging.progress_bar=false",
    "data.build=null",
    "data.prefetch=4",  # otherwise all shards are fetched before a fault is injected
    "run_name=run",
]
_MARGIN = 20  # steps; more than the reader processes are ahead
_START_SECONDS = 150.0  # importing torch on a busy machine


@dataclass
class Scene:
    """A training run and its environment. `order` lists the names of the shards in the order of their use."""

    server: S3Server | ObjectServer | None
    source: Path  # the intact data set
    folder: Path  # for the run and the cache
    order: list[str]
    bucket: Bucket | ObjectBucket | None = None  # None: the data set is read in place
    mirror: Bucket | ObjectBucket | None = None
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    victim: str = ""  # the shard that the fault affects

    def __post_init__(self) -> None:
        self.environment = environment() | (self.server.environment() if self.server is not None else {})
        for name in ("AWS_SESSION_TOKEN", "AZURE_SAS_TOKEN"):
            self.environment.pop(name, None)
        self.victim = self.order[STEPS // 2]

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / "run"

    @property
    def cache(self) -> Path:
        """data.local: an empty folder, or the data set if there is no bucket."""
        return self.folder / ("cache" if self.bucket is not None else "data")

    @property
    def key(self) -> str:
        """The victim's key in the bucket."""
        return f"data/{self.victim}"

    def command(self, workers: int, *settings: str) -> list[str]:
        """Return the command of the user, the same before and after the fault."""
        where = [] if self.bucket is None else [f"data.remote={self.bucket.uri}/data"]
        if self.mirror is not None:
            where.append(f"data.mirror={self.mirror.uri}/data")
        overrides = [*SETTINGS, f"data.deadline={DEADLINE:.0f}s", f"data.num_workers={workers}", *where, *settings]
        return train_command(self.cache, self.folder, overrides)

    def start(self, command: list[str]) -> None:
        """Start the run, with its output in files."""
        with open(self.folder / "stdout", "wb") as out, open(self.folder / "stderr", "wb") as err:
            self.process = subprocess.Popen(command, env=self.environment, stdout=out, stderr=err)

    def end(self, seconds: float) -> int:
        """Return the exit status; kill a run that takes longer than `seconds` and fail the test."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"still running after {seconds:.0f} s\n{self.output()}") from None

    def kill(self) -> None:
        """Kill the run if it is still active."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def wait_until_training(self, steps: int = 20) -> None:
        """Wait for `steps` steps and a checkpoint, then suspend the process and choose a shard that it needs soon.

        Call `resume` after injecting the fault.
        """
        assert self.process is not None
        end = time.monotonic() + _START_SECONDS
        while len(self.losses()) < steps or not list(self.run.glob("checkpoints/*.json")):
            assert self.process.poll() is None and time.monotonic() < end, self.output()
            time.sleep(0.005)
        self.process.send_signal(signal.SIGSTOP)
        self.victim = self.order[len(self.losses()) + _MARGIN]
        assert len(self.losses()) + 2 * _MARGIN < STEPS, "this machine takes steps faster than checkpoints"
        assert self.bucket is None or not self.is_cached(self.victim)

    def resume(self) -> None:
        """Resume the suspended process."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def is_cached(self, shard: str) -> bool:
        """Return True if a shard is in the cache, which may be a file system of the process alone."""
        assert self.process is not None
        return Path(f"/proc/{self.process.pid}/root{self.cache}/{shard.removesuffix('.zstd')}").exists()

    def losses(self) -> list[float]:
        """Return the losses of the steps in the trace."""
        return [step["loss"] for step in self.trace()]

    def trace(self) -> list[dict[str, float]]:
        """Return the recorded steps, without a line that is being written."""
        path = self.run / "trace.jsonl"
        text = path.read_text() if path.is_file() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def output(self) -> str:
        """Return the output of the run."""
        return (self.folder / "stdout").read_text() + self.errors()

    def errors(self) -> str:
        """Return the output on stderr."""
        return (self.folder / "stderr").read_text()

    def left_over(self) -> list[str]:
        """Return the processes of this run that remain after some seconds."""
        found: list[str] = []
        end = time.monotonic() + 3.0
        while time.monotonic() < end:
            found = [name for name in os.listdir("/proc") if name.isdigit() and self._is_ours(name)]
            if not found:
                break
            time.sleep(0.05)
        return found

    def _is_ours(self, pid: str) -> bool:
        try:
            return f"runs_dir={self.folder}\0" in Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            return False

    def said(self) -> str:
        """Return stderr, with the parts that differ between machines or runs replaced by words."""
        text = self.errors().strip()
        places = {str(self.cache): "CACHE" if self.bucket else "DATA", str(self.folder): "FOLDER"}
        if self.mirror is not None:
            places[self.mirror.name] = "MIRROR"
        if self.bucket is not None:
            places[self.bucket.name] = "BUCKET"
        for place, word in places.items():
            text = text.replace(place, word)
        text = re.sub(r"127\.0\.0\.1:\d+|host='127\.0\.0\.1', port=\d+", "SERVER", text)
        return re.sub(r"\(pid[^)]*\)", "(pid)", text)


@dataclass(frozen=True)
class Fault:
    """A fault, and the expected outcome.

    Attributes:
        what: description for the table.
        do: injects the fault.
        repair: removes the cause, after which the same command must resume the run.
        line: part of the one-line error, for a run that does not recover.
        before: inject the fault before the start instead of during training.
        outage: the fault has ended when `do` returns.
        recovers: the run must finish by itself.
        bound: maximum seconds from the fault, or from the start, to the error.
        server: name of the server's fixture; "" to read the data set in place.
        small_disk: the cache is a separate file system of a few megabytes.
        quick: numbers of workers that are tested without --faults.
    """

    name: str
    what: str
    do: Callable[[Scene], object]
    repair: Callable[[Scene], object]
    line: str = ""
    before: bool = False
    outage: bool = False
    recovers: bool = False
    bound: float = 30.0
    server: str = "seaweed"
    compression: str = "none"
    mirrored: bool = False
    small_disk: bool = False
    settings: tuple[str, ...] = ()
    quick: tuple[int, ...] = ()
