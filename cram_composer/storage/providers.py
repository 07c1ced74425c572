"""Object store providers: S3, Google Cloud Storage, Azure, and local folders.

They use the providers' own clients, for S3 as Composer makes it. Every method makes one attempt; `storage.client`
retries.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from cram_composer.storage.bounded import BoundedFile
from cram_composer.storage.error_causes import classify_error, error_code, exception_chain

CONNECT_SECONDS = 5.0
READ_SECONDS = 20.0  # without receiving a byte
_CHUNK_BYTES = 1 << 20
_PART_BYTES = 64 << 20  # parts are sent one after the other; a failed part restarts the whole file


class ObjectStore(Protocol):
    """One bucket, or one folder. Keys are full paths within it."""

    advice: str  # what to check when a request fails

    def get(self, key: str, file: BoundedFile) -> None:
        """Download the object into a file, which raises an error when it receives too much or too late."""

    def put(self, path: Path, key: str) -> None:
        """Upload the file to the object."""

    def list_sizes(self, prefix: str) -> dict[str, int]:
        """Return the size in bytes of every object whose key starts with `prefix`."""

    def size(self, key: str) -> int | None:
        """Return the size of the object in bytes, None if it does not exist."""

    def delete(self, key: str) -> None:
        """Delete the object if it exists."""

    def probe(self, prefix: str) -> None:
        """Request one page of a listing, to check that requests succeed."""


class S3(ObjectStore):
    """S3 and compatible servers. `read` is the timeout of a silent connection, in seconds."""

    advice = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), and S3_ENDPOINT_URL"

    def __init__(self, bucket: str, connect: float, read: float, **options: Any) -> None:
        import boto3
        from composer.utils.object_store import S3ObjectStore

        # One attempt per call: `storage.client` retries, and boto's own retries can outlast any deadline. No threads:
        # a transfer then ends with the thread that requested it, and none is alive when a process forks.
        self._store = S3ObjectStore(
            bucket,
            client_config={
                "connect_timeout": connect,
                "read_timeout": read,
                "retries": {"total_max_attempts": 1},
                "user_agent_extra": f"cram-composer boto3/{boto3.__version__}",
            },
            transfer_config={
                "use_threads": False,
                "num_download_attempts": 1,
                "multipart_threshold": _PART_BYTES,
                "multipart_chunksize": _PART_BYTES,
            },
            **options,
        )
        self._client = self._store.client
        self._bucket = self._store.bucket

    def get(self, key: str, file: BoundedFile) -> None:
        response = self._client.get_object(Bucket=self._bucket, Key=key)
        received = 0
        with response["Body"] as body:
            # read1 returns what has arrived; read would wait for a full chunk from a server that sends byte by byte.
            while chunk := body.read1(_CHUNK_BYTES):
                received += file.write(chunk)
        if received != (length := response.get("ContentLength", received)):
            raise ConnectionError(f"sent {received} of {length} bytes")

    def put(self, path: Path, key: str) -> None:
        self._store.upload_object(key, path)

    def list_sizes(self, prefix: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix):
            if "IsTruncated" not in page:  # such as the page of a proxy, which boto3 reads as an empty listing
                raise ConnectionError("the answer is not a listing")
            found |= {item["Key"]: item["Size"] for item in page.get("Contents", [])}
        return found

    def size(self, key: str) -> int | None:
        try:
            return self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"]
        except Exception as error:
            explained = self._explain_head_error(error, key)
        if classify_error(explained).cause == "missing":
            return None
        raise explained

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self._bucket, Key=key)

    def probe(self, prefix: str) -> None:
        self._client.list_objects_v2(Bucket=self._bucket, Prefix=prefix, MaxKeys=1)

    def _explain_head_error(self, error: Exception, key: str) -> Exception:
        """Repeat a failed HEAD as GET, whose body says whether the key, the object or the bucket was refused."""
        for link in exception_chain(error):
            if (error_code(link) or "").isdigit():
                try:
                    self._client.get_object(Bucket=self._bucket, Key=key, Range="bytes=0-0")["Body"].close()
                except Exception as get_error:
                    return get_error
        return error


class GCS(ObjectStore):
    """Google Cloud Storage by its own client; with HMAC keys `connect` uses its S3 endpoint instead."""

    advice = "check GCS_KEY and GCS_SECRET, or GOOGLE_APPLICATION_CREDENTIALS"

    def __init__(self, bucket: str, connect: float, read: float) -> None:
        storage = importlib.import_module("google.cloud.storage")
        # Without a request: reading a bucket's own data needs a permission that roles for objects lack.
        self._bucket = storage.Client().bucket(bucket)
        self._one_attempt: dict[str, Any] = {"timeout": (connect, read), "retry": None}

    def get(self, key: str, file: BoundedFile) -> None:
        try:
            self._bucket.blob(key).download_to_file(file, **self._one_attempt)
        except Exception as error:
            if classify_error(error).cause == "missing":
                self._check_bucket()
            raise

    def put(self, path: Path, key: str) -> None:
        with self._missing_is_the_bucket():
            self._bucket.blob(key).upload_from_filename(str(path), **self._one_attempt)

    def list_sizes(self, prefix: str) -> dict[str, int]:
        with self._missing_is_the_bucket():
            return {blob.name: blob.size for blob in self._bucket.list_blobs(prefix=prefix, **self._one_attempt)}

    def size(self, key: str) -> int | None:
        blob = self._bucket.get_blob(key, **self._one_attempt)
        if blob is None:
            self._check_bucket()
            return None
        size: int = blob.size
        return size

    def delete(self, key: str) -> None:
        try:
            self._bucket.blob(key).delete(**self._one_attempt)
        except Exception as error:
            _raise_unless_missing(error)

    def probe(self, prefix: str) -> None:
        with self._missing_is_the_bucket():
            next(iter(self._bucket.list_blobs(prefix=prefix, max_results=1, **self._one_attempt)), None)

    def _check_bucket(self) -> None:
        """Raise MissingBucketError if the bucket does not exist, which the error for an object does not say."""
        try:
            self.probe("")
        except Exception as error:
            if classify_error(error).cause != "credentials":  # those for objects alone cannot list
                raise

    @contextmanager
    def _missing_is_the_bucket(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if classify_error(error).cause == "missing":
                raise MissingBucketError(f"{self._bucket.name} does not exist") from error
            raise


class Azure(ObjectStore):
    """Azure Blob Storage by its own client, which Streaming installs (Composer's store needs another one)."""

    advice = (
        "check AZURE_ACCOUNT_NAME, AZURE_ENDPOINT_URL if you set it, and AZURE_ACCOUNT_ACCESS_KEY, AZURE_SAS_TOKEN or "
        "what azure-identity finds (az login, a managed identity)"
    )

    def __init__(self, bucket: str, connect: float, read: float) -> None:
        blob = importlib.import_module("azure.storage.blob")
        account = os.environ.get("AZURE_ACCOUNT_NAME", "")
        credential: Any = os.environ.get("AZURE_ACCOUNT_ACCESS_KEY") or os.environ.get("AZURE_SAS_TOKEN")
        if not credential:
            credential = importlib.import_module("azure.identity").DefaultAzureCredential()
        self._container = blob.ContainerClient(
            os.environ.get("AZURE_ENDPOINT_URL", f"https://{account}.blob.core.windows.net"),
            bucket,
            credential=credential,
            retry_total=0,
            connection_timeout=connect,
            read_timeout=read,
        )

    def get(self, key: str, file: BoundedFile) -> None:
        self._container.download_blob(key).readinto(file)

    def put(self, path: Path, key: str) -> None:
        with open(path, "rb") as file:
            self._container.upload_blob(key, file, overwrite=True)

    def list_sizes(self, prefix: str) -> dict[str, int]:
        return {item.name: item.size for item in self._container.list_blobs(name_starts_with=prefix)}

    def size(self, key: str) -> int | None:
        return next((i.size for i in self._container.list_blobs(name_starts_with=key) if i.name == key), None)

    def delete(self, key: str) -> None:
        try:
            self._container.delete_blob(key)
        except Exception as error:
            _raise_unless_missing(error)

    def probe(self, prefix: str) -> None:
        next(self._container.list_blobs(name_starts_with=prefix, results_per_page=1), None)


class LocalFolder(ObjectStore):
    """A local folder; keys are relative paths."""

    advice = "check the path and its permissions"

    def __init__(self, root: Path) -> None:
        self._root = root

    def get(self, key: str, file: BoundedFile) -> None:
        with open(self._root / key, "rb") as source:
            shutil.copyfileobj(source, file, _CHUNK_BYTES)

    def put(self, path: Path, key: str) -> None:
        target = self._root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            shutil.copyfile(path, temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def list_sizes(self, prefix: str) -> dict[str, int]:
        files = (path for path in (self._root / prefix).rglob("*") if path.is_file())
        return {str(path.relative_to(self._root)): path.stat().st_size for path in files}

    def size(self, key: str) -> int | None:
        path = self._root / key
        return path.stat().st_size if path.is_file() else None

    def delete(self, key: str) -> None:
        (self._root / key).unlink(missing_ok=True)

    def probe(self, prefix: str) -> None:
        next(os.scandir(self._root), None)


class MissingBucketError(Exception):
    """A bucket does not exist."""


def load_clients(scheme: str) -> None:
    """Import the modules that `connect` needs, which takes seconds the first time."""
    if scheme:
        importlib.import_module("composer.utils.object_store")


def connect(scheme: str, bucket: str, connect_seconds: float, read_seconds: float) -> ObjectStore:
    """Open the object store of a URI scheme ("" is the folder `bucket`). May already send requests."""
    if scheme == "":
        return LocalFolder(Path(bucket))
    if scheme == "gs" and "GCS_KEY" in os.environ and "GCS_SECRET" in os.environ:
        return S3(
            bucket,
            connect_seconds,
            read_seconds,
            region_name="auto",
            endpoint_url="https://storage.googleapis.com",
            aws_access_key_id=os.environ["GCS_KEY"],
            aws_secret_access_key=os.environ["GCS_SECRET"],
        )
    return SCHEMES[scheme](bucket, connect_seconds, read_seconds)


SCHEMES: dict[str, Any] = {"s3": S3, "gs": GCS, "azure": Azure}


def _raise_unless_missing(error: Exception) -> None:
    if classify_error(error).cause != "missing":
        raise error
