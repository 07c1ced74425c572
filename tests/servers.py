"""Real servers on this machine, for tests of everything that touches object storage; for S3, SeaweedFS and rclone.

Each keeps its data in a separate folder across restarts, and ends with the process that started it. Tests can stop and
pause the servers. Those for S3 enforce an access key, which tests can change.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_READY_SECONDS = 60.0
_LAUNCHER = ThreadPoolExecutor(1, "servers")

Command = Callable[["S3Server"], list[str]]


class Server:
    """A process that serves objects from a folder."""

    stop_seconds = 1.0  # from SIGTERM to SIGKILL

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def pid(self) -> int:
        """Process id of the server, which must be running."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """True while the process lives."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Stop the server with SIGTERM, or SIGKILL after `stop_seconds`. Its data stay."""
        if self._process is None:
            return
        self.resume()
        self._process.terminate()
        try:
            self._process.wait(self.stop_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def pause(self) -> None:
        """Suspend the process: the kernel still accepts connections, but no request is answered."""
        os.kill(self.pid, signal.SIGSTOP)
        # Threads stop one by one after the signal, so an immediate request could still be answered.
        threads = Path(f"/proc/{self.pid}/task")
        while threads.is_dir() and not all(_is_stopped(thread) for thread in threads.iterdir()):
            time.sleep(0.01)

    def resume(self) -> None:
        """Resume a paused server."""
        if self.is_running:
            os.kill(self.pid, signal.SIGCONT)

    def launch(self, command: list[str], variables: dict[str, str] | None = None) -> None:
        """Start the process, with further environment variables and its output in the file `log`."""

        def start() -> subprocess.Popen[bytes]:
            with open(self.folder / "log", "ab") as log:
                return subprocess.Popen(
                    command,
                    cwd=self.folder,
                    env=os.environ | (variables or {}),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    preexec_fn=_die_with_the_parent,
                )

        # The server gets its signal when the *thread* that started it ends, and a test may start it from a timer.
        self._process = _LAUNCHER.submit(start).result()

    def log(self) -> str:
        """Return what the process printed."""
        return (self.folder / "log").read_text(errors="replace")


class S3Server(Server):
    """An S3 server; `command` returns its command line for its current ports and credentials.

    `reloads` is True if the server rereads its credentials on SIGHUP.
    """

    def __init__(self, folder: Path, command: Command, ports: int, reloads: bool = False) -> None:
        super().__init__(folder)
        self.access_key, self.secret_key = "cram-key", "cram-secret"
        self.keys_before: list[str] = []
        self.ports: list[int] = []
        self._port_count = ports
        self._reloads = reloads
        self._command = command

    @property
    def port(self) -> int:
        """The S3 port, which stays the same across restarts."""
        return self.ports[0]

    @property
    def endpoint(self) -> str:
        """The value of S3_ENDPOINT_URL."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """Return variables that point boto3, Composer and Streaming at this server, independent of the machine."""
        return {
            "S3_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1",
        }

    def start(self) -> S3Server:
        """Start the server unless it runs, on its previous ports, and wait until an object can be written."""
        if self.is_running:
            return self
        for _ in range(3):
            if not self.ports:
                self.ports = free_ports(self._port_count)
            self.launch(self._command(self))
            if self._wait_until_ready():
                return self
            self.stop()
            if self.folder.joinpath("used").exists():
                break  # clients know these ports
            self.ports = []  # another process may have taken one in the meantime
        raise RuntimeError(f"the server did not start: {self.log()[-2000:]}")

    def stop(self) -> None:
        """Stop the server, as Server does."""
        super().stop()
        for port in self.ports:
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # remain after SIGKILL; no option moves them
                left.unlink(missing_ok=True)

    def put_credentials(self, key: str, secret: str) -> None:
        """Replace the accepted credentials (at least 8 characters each, or rclone ignores them).

        `environment()` returns the new ones; earlier results become invalid. A running rclone is restarted.
        """
        self.keys_before.append(self.access_key)
        self.access_key, self.secret_key = key, secret
        if self._process is None:
            return
        if self._reloads:
            self._command(self)  # writes the credentials file
            os.kill(self.pid, signal.SIGHUP)
            self._wait_until_ready()
        else:
            self.stop()
            self.start()

    def client(self, read_timeout: float = 10.0) -> Any:
        """Return a boto3 client with the current credentials, independent of environment and code under test."""
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(connect_timeout=2, read_timeout=read_timeout, retries={"total_max_attempts": 1}),
        )

    def new_bucket(self) -> Bucket:
        """Create an empty bucket with a unique name."""
        name = f"b-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return Bucket(self, name)

    def _wait_until_ready(self) -> bool:
        """Return True if an object can be written, read and deleted before the process ends or the time is up."""
        client, name = self.client(), "ready"
        end = time.monotonic() + _READY_SECONDS
        while time.monotonic() < end and self.is_running:
            try:
                if name not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                    client.create_bucket(Bucket=name)
                client.put_object(Bucket=name, Key="probe", Body=b"x")
                client.get_object(Bucket=name, Key="probe")["Body"].read()
                client.delete_object(Bucket=name, Key="probe")
            except Exception:  # various errors during its start
                time.sleep(0.1)
                continue
            self.folder.joinpath("used").touch()
            return True
        return False


@dataclass(frozen=True)
class Bucket:
    """A bucket of a server."""

    server: S3Server
    name: str

    @property
    def uri(self) -> str:
        """The URI of the whole bucket, without a slash at its end."""
        return f"s3://{self.name}"

    def environment(self) -> dict[str, str]:
        """Return the variables of S3Server.environment."""
        return self.server.environment()

    def put(self, key: str, content: bytes) -> None:
        """Write an object."""
        self.server.client().put_object(Bucket=self.name, Key=key, Body=content)

    def get(self, key: str) -> bytes:
        """Read an object."""
        return self.server.client().get_object(Bucket=self.name, Key=key)["Body"].read()

    def delete(self, key: str) -> None:
        """Delete an object."""
        self.server.client().delete_object(Bucket=self.name, Key=key)

    def create(self) -> None:
        """Create the bucket again after `remove`."""
        self.server.client().create_bucket(Bucket=self.name)

    def remove(self) -> None:
        """Delete the bucket and everything in it."""
        for key in self.keys():
            self.delete(key)
        self.server.client().delete_bucket(Bucket=self.name)

    def keys(self, prefix: str = "") -> list[str]:
        """Return the sorted keys of all objects under a prefix."""
        pages = self.server.client().get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", []))

    def upload_folder(self, folder: Path, prefix: str = "") -> str:
        """Upload a folder with everything below it; return its URI."""
        client = self.server.client()
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.upload_file(str(path), self.name, f"{prefix}/{path.relative_to(folder)}".lstrip("/"))
        return f"{self.uri}/{prefix}".rstrip("/")


def seaweed_server(folder: Path) -> S3Server:
    """Return SeaweedFS: master, volume server, filer and S3 gateway in one process."""

    def command(server: S3Server) -> list[str]:
        s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = server.ports
        data, identities = server.folder / "data", server.folder / "identities.json"
        data.mkdir(exist_ok=True)
        # It forgets no key when it rereads the file, so an invalid key gets a secret that nobody knows.
        secrets = dict.fromkeys(server.keys_before, uuid.uuid4().hex) | {server.access_key: server.secret_key}
        credentials = [{"accessKey": key, "secretKey": secret} for key, secret in secrets.items()]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "test", "credentials": credentials, "actions": actions}
        identities.write_text(json.dumps({"identities": [identity]}))
        return [
            binary("weed"),
            f"-logdir={server.folder}",
            "server",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-dir={data}",
            f"-master.port={master}",
            f"-master.port.grpc={master_grpc}",
            "-master.telemetry=false",
            "-master.resumeState=false",  # otherwise a restart waits 20 s for the election of the only master
            "-master.volumeSizeLimitMB=64",  # a bucket takes several volumes; -volume.max=0 is the free disk over this
            f"-volume.port={volume}",
            f"-volume.port.grpc={volume_grpc}",
            "-volume.max=0",
            "-volume.preStopSeconds=0",
            f"-filer.port={filer}",
            f"-filer.port.grpc={filer_grpc}",
            f"-filer.localSocket={server.folder / 'filer.sock'}",
            "-s3",
            f"-s3.port={s3}",
            f"-s3.port.grpc={s3_grpc}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.localSocket={server.folder / 's3.sock'}",
            f"-s3.config={identities}",
            "-s3.iam=false",
            "-s3.autoCreateBucket=false",
        ]

    return S3Server(folder, command, ports=8, reloads=True)


def rclone_server(folder: Path) -> S3Server:
    """Return rclone serving a folder, in which every bucket is a folder."""

    def command(server: S3Server) -> list[str]:
        data = server.folder / "data"
        data.mkdir(exist_ok=True)
        return [
            binary("rclone"),
            "serve",
            "s3",
            str(data),
            "--config=",
            f"--addr=127.0.0.1:{server.port}",
            f"--auth-key={server.access_key},{server.secret_key}",
            f"--cache-dir={server.folder / 'cache'}",
        ]

    return S3Server(folder, command, ports=1)


def binary(name: str) -> str:
    """Return the path of a program of this environment."""
    return str(Path(sys.executable).parent / name)


def free_ports(count: int) -> list[int]:
    """Return different ports on which nothing listens."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _die_with_the_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _is_stopped(task: Path) -> bool:
    try:
        return (task / "stat").read_text().rsplit(")", 1)[1].split()[0] in "TtZX"
    except OSError:  # the thread has ended
        return True
