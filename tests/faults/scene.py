"""A tiny data set on a real S3 server, and a real training of it that something happens to."""

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

STEPS = 120  # less than an epoch, each of one block, which is a shard of its own
ROWS = 8  # per step
DEADLINE = 6.0  # seconds, data.deadline unless a fault says otherwise
SETTINGS = [
    f"budget={{steps: {STEPS}, wall: null}}",
    f"train.batch_size={ROWS}",
    f"train.device_train_microbatch_size={ROWS}",
    "algorithms.batch_size_ramp=null",
    "model.num_hidden_layers=1",
    "train.threads=1",  # two would wait for each other wherever the cores are shared
    "checkpoint.interval=0.1s",
    "logging.progress_bar=false",
    "data.build=null",
    "data.prefetch=4",  # or the shards of the whole run would be there before anything can happen
    "run_name=run",
]
_MARGIN = 20  # steps: more than the reading processes are ahead
_START_SECONDS = 150.0  # importing torch on a machine that is busy


@dataclass
class Scene:
    """One training and its surroundings. `order` are the names of the shards in the order in which they are needed."""

    server: S3Server | None
    source: Path  # the data set as it should be
    folder: Path  # for the run and the cache
    order: list[str]
    bucket: Bucket | None = None  # None: the data set is read where it is
    mirror: Bucket | None = None
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    victim: str = ""  # the shard that something happens to

    def __post_init__(self) -> None:
        self.environment = environment() | (self.server.environment() if self.server is not None else {})
        self.environment.pop("AWS_SESSION_TOKEN", None)
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
        """The command that the user types, before and after."""
        where = [] if self.bucket is None else [f"data.remote={self.bucket.uri}/data"]
        if self.mirror is not None:
            where.append(f"data.mirror={self.mirror.uri}/data")
        overrides = [*SETTINGS, f"data.deadline={DEADLINE:.0f}s", f"data.num_workers={workers}", *where, *settings]
        return train_command(self.cache, self.folder, overrides)

    def start(self, command: list[str]) -> None:
        """Start it; what it prints goes to files."""
        with open(self.folder / "stdout", "wb") as out, open(self.folder / "stderr", "wb") as err:
            self.process = subprocess.Popen(command, env=self.environment, stdout=out, stderr=err)

    def end(self, seconds: float) -> int:
        """Its exit status; a run that does not end by then is killed, which is a failure of the test."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"still running after {seconds:.0f} s\n{self.output()}") from None

    def kill(self) -> None:
        """If it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def wait_until_training(self, steps: int = 20) -> None:
        """Some steps were taken and a checkpoint was saved; the victim is a shard that will soon be needed.

        The process is held then: let it go on when the fault is done.
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

    def go_on(self) -> None:
        """Let the process go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def is_cached(self, shard: str) -> bool:
        """Whether a shard is in the cache, which may be a file system that only the process sees."""
        assert self.process is not None
        return Path(f"/proc/{self.process.pid}/root{self.cache}/{shard.removesuffix('.zstd')}").exists()

    def losses(self) -> list[float]:
        """Of each step in the trace; a line that is being written is left out."""
        return [step["loss"] for step in self.trace()]

    def trace(self) -> list[dict[str, float]]:
        """Every step that was recorded."""
        path = self.run / "trace.jsonl"
        text = path.read_text() if path.is_file() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def output(self) -> str:
        """Everything it printed."""
        return (self.folder / "stdout").read_text() + self.errors()

    def errors(self) -> str:
        """What it printed to stderr."""
        return (self.folder / "stderr").read_text()

    def left_over(self) -> list[str]:
        """Processes of this run that are still there."""
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
        """The lines of stderr, with what differs from one machine or run to the next replaced by a word."""
        text = self.errors().strip()
        places = {str(self.cache): "CACHE" if self.bucket else "DATA", str(self.folder): "FOLDER"}
        if self.mirror is not None:
            places[self.mirror.name] = "MIRROR"
        if self.bucket is not None:
            places[self.bucket.name] = "BUCKET"
        for place, word in places.items():
            text = text.replace(place, word)
        text = re.sub(r"127\.0\.0\.1:\d+", "SERVER", text)
        return re.sub(r"\(pid[^)]*\)", "(pid)", text)


@dataclass(frozen=True)
class Fault:
    """Something that happens to a run, and what must come of it.

    `what` is what is done, for people. It is done `before` the run starts, or while it trains. A run that `recovers`
    ends well by itself; another ends with one line that has `line` in it, at most `bound` seconds after the fault (or
    after its start), and goes on when `repair` has removed the cause.
    """

    name: str
    what: str
    do: Callable[[Scene], object]
    repair: Callable[[Scene], object]
    line: str = ""
    before: bool = False
    outage: bool = False  # is over when it is done
    recovers: bool = False
    bound: float = 30.0
    server: str = "seaweed"  # "" for none: the data set is read where it is
    compression: str = "none"
    mirrored: bool = False
    small_disk: bool = False  # the cache is a file system of its own, of a few megabytes
    settings: tuple[str, ...] = ()
    quick: tuple[int, ...] = ()  # numbers of workers for which it is run every time
