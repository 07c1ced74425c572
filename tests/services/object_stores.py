"""Azurite and an emulator of Google Cloud Storage, each a server in a folder and on a port of its own."""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import socket
import sys
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import ClassVar, Self, cast
from urllib.parse import parse_qs, urlsplit

from tests.servers import Server, free_ports

BUCKET = "bucket"  # of the tests of services
_SECONDS = 60.0  # to start


class ObjectServer(Server, ABC):
    """A server on a free port; `stop` and `start` keep its data."""

    stop_seconds = 20.0  # it writes its data at the end

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (self.port,) = free_ports(1)

    @staticmethod
    @abstractmethod
    def missing() -> str:
        """Return what is not installed, and how to install it."""

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command that serves."""

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """Return variables that point clients at this server."""

    @abstractmethod
    def bucket(self, name: str) -> ObjectBucket:
        """Return the bucket of a name, whether or not it exists."""

    def new_bucket(self, name: str = "") -> ObjectBucket:
        """Create an empty bucket; without a name, with a unique one."""
        made = self.bucket(name or f"b-{uuid.uuid4().hex[:12]}")
        made.create()
        return made

    def start(self) -> Self:
        """Start the server unless it runs, and wait until it accepts connections."""
        if self.is_running:
            return self
        self.launch(self.command(), self.environment())
        ends = time.monotonic() + _SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                assert time.monotonic() < ends and self.is_running, self.log()
                time.sleep(0.1)


@dataclass(frozen=True)
class ObjectBucket(ABC):
    """A bucket, used through the provider's client and not through the code under test."""

    server: ObjectServer
    name: str
    scheme: ClassVar[str]

    @property
    def uri(self) -> str:
        """The URI of the whole bucket, without a slash at its end."""
        return f"{self.scheme}://{self.name}"

    @abstractmethod
    def create(self) -> None:
        """Create it."""

    @abstractmethod
    def remove(self) -> None:
        """Delete it and everything in it."""

    @abstractmethod
    def put(self, key: str, content: bytes) -> None:
        """Write an object."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete an object."""

    def upload_folder(self, folder: Path, prefix: str) -> None:
        """Upload a folder with everything below it."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())


class AzureContainer(ObjectBucket):
    """A container of Azurite."""

    scheme = "azure"

    def create(self) -> None:
        """Create it."""
        self._client().create_container()

    def remove(self) -> None:
        """Delete it and everything in it."""
        self._client().delete_container()

    def put(self, key: str, content: bytes) -> None:
        """Write an object."""
        self._client().upload_blob(key, content, overwrite=True)

    def delete(self, key: str) -> None:
        """Delete an object."""
        self._client().delete_blob(key)

    def _client(self):
        from azure.storage.blob import ContainerClient

        server = cast(Azurite, self.server)
        return ContainerClient(server.endpoint, self.name, credential=server.key, connection_verify=server.verify)


class GoogleBucket(ObjectBucket):
    """A bucket of the emulator."""

    scheme = "gs"

    def create(self) -> None:
        """Create it."""
        self._client().create_bucket(self.name)

    def remove(self) -> None:
        """Delete it and everything in it."""
        bucket = self._client().bucket(self.name)
        for blob in bucket.list_blobs():
            blob.delete()
        bucket.delete()

    def put(self, key: str, content: bytes) -> None:
        """Write an object."""
        self._client().bucket(self.name).blob(key).upload_from_string(content)

    def delete(self, key: str) -> None:
        """Delete an object."""
        self._client().bucket(self.name).blob(key).delete()

    def _client(self):
        from google.auth.credentials import AnonymousCredentials
        from google.cloud.storage import Client

        server = cast(GoogleEmulator, self.server)
        return Client("project", AnonymousCredentials(), client_options={"api_endpoint": server.endpoint})


class Azurite(ObjectServer):
    """Azure Blob Storage by Azurite (`npm install -g azurite`)."""

    verify: str | bool = True  # certificates to trust

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.key = _new_key()
        self.endpoint = f"http://127.0.0.1:{self.port}/cram"

    def environment(self) -> dict[str, str]:
        """Return variables that point clients at this server."""
        return {
            "AZURE_ACCOUNT_NAME": "cram",
            "AZURE_ACCOUNT_ACCESS_KEY": self.key,
            "AZURE_ENDPOINT_URL": self.endpoint,
            "AZURITE_ACCOUNTS": f"cram:{self.key}",
        }

    def bucket(self, name: str) -> AzureContainer:
        """Return the container of a name, whether or not it exists."""
        return AzureContainer(self, name)

    def put_key(self, key: str = "") -> None:
        """Replace the account's key, without one by a random one, and restart."""
        self.stop()
        self.key = key or _new_key()
        self.start()

    @staticmethod
    def missing() -> str:
        """Return what is not installed."""
        return "" if shutil.which("azurite-blob") else "azurite-blob (npm install -g azurite)"

    def command(self) -> list[str]:
        program = shutil.which("azurite-blob")
        assert program is not None
        where = ["--location", str(self.folder), "--blobHost", "127.0.0.1", "--blobPort", str(self.port)]
        return [program, *where, "--silent", "--skipApiVersionCheck", "--disableTelemetry"]

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
        return {"AZURE_ACCOUNT_NAME": "cram", "AZURE_ENDPOINT_URL": self.endpoint, "AZURE_SAS_TOKEN": token}


class AzuriteWithIdentities(Azurite):
    """Azurite that accepts the tokens of Microsoft Entra ID, over TLS, and a managed identity to get them from.

    Azurite reads a token's issuer, audience and dates, not its signature.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._write_certificate()
        self.endpoint = self.endpoint.replace("http:", "https:")
        self.verify = str(folder / "cert.pem")
        self.asked: list[str] = []  # resources that tokens were asked for

    def command(self) -> list[str]:
        certificate = ["--cert", str(self.folder / "cert.pem"), "--key", str(self.folder / "key.pem")]
        return [*super().command(), "--oauth", "basic", *certificate]

    @contextmanager
    def identity(self) -> Iterator[dict[str, str]]:
        """Serve the tokens of a managed identity as Azure's App Service does; yield the variables of a client."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_IdentityHandler,), {"azurite": self}))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield {
                "AZURE_ACCOUNT_NAME": "cram",
                "AZURE_ENDPOINT_URL": self.endpoint,
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

    @property
    def endpoint(self) -> str:
        """The value of STORAGE_EMULATOR_HOST."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """Return variables that point clients at this server."""
        return {"STORAGE_EMULATOR_HOST": self.endpoint}

    def bucket(self, name: str) -> GoogleBucket:
        """Return the bucket of a name, whether or not it exists."""
        return GoogleBucket(self, name)

    @staticmethod
    def missing() -> str:
        """Return what is not installed."""
        return "" if find_spec("gcp_storage_emulator") else "gcp-storage-emulator (the extra dev)"

    def command(self) -> list[str]:
        options = ["--host=127.0.0.1", f"--port={self.port}"]
        return [sys.executable, "-m", "gcp_storage_emulator", f"--data-dir={self.folder}", "start", *options]


def _new_key() -> str:
    return base64.b64encode(secrets.token_bytes(64)).decode()
