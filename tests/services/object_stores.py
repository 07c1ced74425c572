"""Azurite and Google's emulator, each a server in a folder and on a port of its own."""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from importlib.util import find_spec
from pathlib import Path

from tests.servers import free_ports

BUCKET = "bucket"
_SECONDS = 60.0  # to start


class ObjectServer(ABC):
    """A server with one bucket; `stop` and `start` keep its data.

    Attributes:
        environment: variables that clients need.
        uri: of the bucket.
    """

    environment: dict[str, str]
    uri: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (self.port,) = free_ports(1)
        self._process: subprocess.Popen | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command that serves."""

    @abstractmethod
    def create_bucket(self) -> None:
        """Create the bucket unless the server has made it."""

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        with open(self.folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=self.folder, stdout=log, stderr=log, env=os.environ | self.environment
            )
        ends = time.monotonic() + _SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                log_text = (self.folder / "server.log").read_text(errors="replace")
                assert time.monotonic() < ends and self._process.poll() is None, log_text
                time.sleep(0.1)

    def stop(self) -> None:
        """Stop the server."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


class Azurite(ObjectServer):
    """Azure Blob Storage by Azurite (`npm install -g azurite`)."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.key = base64.b64encode(secrets.token_bytes(64)).decode()
        self.uri = f"azure://{BUCKET}"
        self.environment = {
            "AZURE_ACCOUNT_NAME": "cram",
            "AZURE_ACCOUNT_ACCESS_KEY": self.key,
            "AZURE_ENDPOINT_URL": f"http://127.0.0.1:{self.port}/cram",
            "AZURITE_ACCOUNTS": f"cram:{self.key}",
        }

    @staticmethod
    def missing() -> str:
        """Return what is not installed."""
        return "" if shutil.which("azurite-blob") else "azurite-blob (npm install -g azurite)"

    def command(self) -> list[str]:
        program = shutil.which("azurite-blob")
        assert program is not None
        where = ["--location", str(self.folder), "--blobHost", "127.0.0.1", "--blobPort", str(self.port)]
        return [program, *where, "--silent", "--skipApiVersionCheck", "--disableTelemetry"]

    def create_bucket(self) -> None:
        """Create the bucket."""
        self.container().create_container()

    def container(self):
        """Return a client of the bucket."""
        from azure.storage.blob import ContainerClient

        return ContainerClient(self.environment["AZURE_ENDPOINT_URL"], BUCKET, credential=self.key)

    def sas_environment(self) -> dict[str, str]:
        """Return variables with a shared access signature in the place of the key."""
        from datetime import UTC, datetime, timedelta

        from azure.storage.blob import ContainerSasPermissions, generate_container_sas

        token = generate_container_sas(
            "cram",
            BUCKET,
            account_key=self.key,
            permission=ContainerSasPermissions(read=True, write=True, list=True, delete=True),
            expiry=datetime.now(UTC) + timedelta(hours=1),
        )
        kept = {name: self.environment[name] for name in ("AZURE_ACCOUNT_NAME", "AZURE_ENDPOINT_URL")}
        return kept | {"AZURE_SAS_TOKEN": token}


class GoogleEmulator(ObjectServer):
    """Google Cloud Storage by gcp-storage-emulator (PyPI), without credentials."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.uri = f"gs://{BUCKET}"
        self.environment = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{self.port}"}

    @staticmethod
    def missing() -> str:
        """Return what is not installed."""
        return "" if find_spec("gcp_storage_emulator") else "gcp-storage-emulator (the extra dev)"

    def command(self) -> list[str]:
        options = ["--host=127.0.0.1", f"--port={self.port}", f"--default-bucket={BUCKET}"]
        return [sys.executable, "-m", "gcp_storage_emulator", f"--data-dir={self.folder}", "start", *options]

    def create_bucket(self) -> None:
        """Do nothing, since the server has made it."""
