"""Azurite and Google's emulator, each a server in a folder and on a port of its own."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

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


class AzuriteWithIdentities(Azurite):
    """Azurite that accepts the tokens of Microsoft Entra ID, over TLS, and a managed identity to get them from.

    Azurite reads a token's issuer, audience and dates, not its signature.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._write_certificate()
        self.asked: list[str] = []  # resources that tokens were asked for

    def command(self) -> list[str]:
        certificate = ["--cert", str(self.folder / "cert.pem"), "--key", str(self.folder / "key.pem")]
        return [*super().command(), "--oauth", "basic", *certificate]

    def container(self):
        """Return a client of the bucket."""
        from azure.storage.blob import ContainerClient

        endpoint = self.environment["AZURE_ENDPOINT_URL"].replace("http:", "https:")
        return ContainerClient(
            endpoint, BUCKET, credential=self.key, connection_verify=str(self.folder / "cert.pem")
        )  # fmt: skip

    @contextmanager
    def identity(self) -> Iterator[dict[str, str]]:
        """Serve the tokens of a managed identity as Azure's App Service does; yield the variables of a client."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_IdentityHandler,), {"azurite": self}))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield {
                "AZURE_ACCOUNT_NAME": "cram",
                "AZURE_ENDPOINT_URL": self.environment["AZURE_ENDPOINT_URL"].replace("http:", "https:"),
                "IDENTITY_ENDPOINT": f"http://127.0.0.1:{server.server_port}/token",
                "IDENTITY_HEADER": "secret",
                "REQUESTS_CA_BUNDLE": str(self.folder / "cert.pem"),
            }
        finally:
            server.shutdown()
            server.server_close()

    def _write_certificate(self) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        name, now = x509.Name([]), datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=True)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        (self.folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
        (self.folder / "key.pem").write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )


class _IdentityHandler(BaseHTTPRequestHandler):
    azurite: AzuriteWithIdentities

    def do_GET(self) -> None:
        import jwt

        if self.headers["X-IDENTITY-HEADER"] != "secret":
            self.send_error(401)
            return
        resource = parse_qs(urlsplit(self.path).query)["resource"][0]
        self.azurite.asked.append(resource)
        now = int(time.time())
        dates = {"iat": now - 60, "nbf": now - 60, "exp": now + 3600}
        claims = {"aud": resource, "iss": "https://sts.windows.net/tenant/", **dates}
        token = jwt.encode(claims, "not verified, but long enough for HMAC", "HS256")
        body = json.dumps({"access_token": token, "expires_on": str(now + 3600), "resource": resource}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


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
