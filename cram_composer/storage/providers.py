"""The providers behind `storage`: what each can do with one object, and what its errors mean.

They are Composer's object stores where those will do. What they lack (sizes, deleting, HEAD, time limits) goes to the
provider's own client. Every method makes one attempt; `storage` makes the others.
"""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path
from typing import Any, Protocol

from cram_composer.storage.faults import chain, code_of, fault_of

CONNECT_SECONDS = 5.0
READ_SECONDS = 20.0  # without a byte
_PART_BYTES = 64 << 20  # parts go one after the other; a part that fails is sent again with the whole file


class ObjectStore(Protocol):
    """One bucket, or one folder. Keys are full paths within it."""

    advice: str  # where the credentials come from

    def get(self, key: str, path: Path) -> None:
        """Write the object to the file `path`."""

    def put(self, path: Path, key: str) -> None:
        """Write the file to the object."""

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of every object whose key starts with `prefix`."""

    def size(self, key: str) -> int | None:
        """Bytes of the object, None if there is none."""

    def delete(self, key: str) -> None:
        """Delete the object; no error if there is none."""

    def first(self, prefix: str) -> None:
        """Ask for one page of a listing: fails as any other request would."""


class S3(ObjectStore):
    """S3 and what speaks its protocol. `read` is the time limit for a silent connection, in seconds."""

    advice = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), and S3_ENDPOINT_URL"

    def __init__(self, bucket: str, connect: float, read: float, **options: Any) -> None:
        import boto3
        from composer.utils.object_store import S3ObjectStore

        # One attempt per call: the retries are ours, and theirs can outlast any deadline. No threads: a transfer then
        # ends with the thread that asked for it, and none is alive when a process forks.
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

    def get(self, key: str, path: Path) -> None:
        try:
            self._store.download_object(key, path, overwrite=True)
        except Exception as error:
            raise self._explained(error, key) from None

    def put(self, path: Path, key: str) -> None:
        self._store.upload_object(key, path)

    def sizes(self, prefix: str) -> dict[str, int]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        return {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", [])}

    def size(self, key: str) -> int | None:
        try:
            return self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"]
        except Exception as error:
            explained = self._explained(error, key)
        if fault_of(explained).cause == "missing":
            return None
        raise explained

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self._bucket, Key=key)

    def first(self, prefix: str) -> None:
        self._client.list_objects_v2(Bucket=self._bucket, Prefix=prefix, MaxKeys=1)

    def _explained(self, error: Exception, key: str) -> Exception:
        """The answer to HEAD has no body, so 403 and 404 may be the key, the object or the bucket: a GET says which."""
        for link in chain(error):
            if (code_of(link) or "").isdigit():
                try:
                    self._client.get_object(Bucket=self._bucket, Key=key, Range="bytes=0-0")["Body"].close()
                except Exception as further:
                    return further
        return error


class GCS(ObjectStore):
    """Google Cloud Storage by its own client; with HMAC keys it is S3 at another endpoint (see `connect`)."""

    advice = "check GCS_KEY and GCS_SECRET, or GOOGLE_APPLICATION_CREDENTIALS"

    def __init__(self, bucket: str, connect: float, read: float) -> None:
        from composer.utils.object_store import GCSObjectStore

        self._bucket = GCSObjectStore(bucket).bucket
        self._once: dict[str, Any] = {"timeout": (connect, read), "retry": None}

    def get(self, key: str, path: Path) -> None:
        self._bucket.blob(key).download_to_filename(str(path), **self._once)

    def put(self, path: Path, key: str) -> None:
        self._bucket.blob(key).upload_from_filename(str(path), **self._once)

    def sizes(self, prefix: str) -> dict[str, int]:
        return {blob.name: blob.size for blob in self._bucket.list_blobs(prefix=prefix, **self._once)}

    def size(self, key: str) -> int | None:
        blob = self._bucket.get_blob(key, **self._once)
        return None if blob is None else blob.size

    def delete(self, key: str) -> None:
        try:
            self._bucket.blob(key).delete(**self._once)
        except Exception as error:
            _pass_over_missing(error)

    def first(self, prefix: str) -> None:
        next(iter(self._bucket.list_blobs(prefix=prefix, max_results=1, **self._once)), None)


class OCI(ObjectStore):
    """Oracle's object storage."""

    advice = "check OCI_CONFIG_FILE (default: ~/.oci/config)"

    def __init__(self, bucket: str, connect: float, read: float) -> None:
        from composer.utils.object_store import OCIObjectStore

        self._store = OCIObjectStore(bucket)
        self._client = self._store.client
        self._client.base_client.timeout = (connect, read)
        self._where = (self._store.namespace, bucket)
        # The retries are ours. (Composer's own calls keep the client's strategy, so only these are bounded.)
        self._once = {"retry_strategy": importlib.import_module("oci.retry").NoneRetryStrategy()}

    def get(self, key: str, path: Path) -> None:
        self._store.download_object(key, path, overwrite=True)

    def put(self, path: Path, key: str) -> None:
        self._store.upload_object(key, str(path))

    def sizes(self, prefix: str) -> dict[str, int]:
        found: dict[str, int] = {}
        start: str | None = None
        while True:
            page = self._list(prefix=prefix, **({"start": start} if start else {}))
            found |= {item.name: item.size for item in page.objects}
            start = page.next_start_with
            if not start:
                return found

    def size(self, key: str) -> int | None:
        # HEAD would not say whether it is the object or the bucket that is not there.
        return next((item.size for item in self._list(prefix=key, limit=1).objects if item.name == key), None)

    def delete(self, key: str) -> None:
        try:
            self._client.delete_object(*self._where, key, **self._once)
        except Exception as error:
            _pass_over_missing(error)

    def first(self, prefix: str) -> None:
        self._list(prefix=prefix, limit=1)

    def _list(self, **options: Any) -> Any:
        return self._client.list_objects(*self._where, fields="name,size", **self._once, **options).data


class Azure(ObjectStore):
    """Azure Blob Storage by its own client, which Streaming brings (Composer's store needs another)."""

    advice = "check AZURE_ACCOUNT_NAME and AZURE_ACCOUNT_ACCESS_KEY"

    def __init__(self, bucket: str, connect: float, read: float) -> None:
        blob = importlib.import_module("azure.storage.blob")
        self._container = blob.ContainerClient(
            f"https://{os.environ.get('AZURE_ACCOUNT_NAME', '')}.blob.core.windows.net",
            bucket,
            credential=os.environ.get("AZURE_ACCOUNT_ACCESS_KEY"),
            retry_total=0,
            connection_timeout=connect,
            read_timeout=read,
        )

    def get(self, key: str, path: Path) -> None:
        with open(path, "wb") as file:
            self._container.download_blob(key).readinto(file)

    def put(self, path: Path, key: str) -> None:
        with open(path, "rb") as file:
            self._container.upload_blob(key, file, overwrite=True)

    def sizes(self, prefix: str) -> dict[str, int]:
        return {item.name: item.size for item in self._container.list_blobs(name_starts_with=prefix)}

    def size(self, key: str) -> int | None:
        return next((i.size for i in self._container.list_blobs(name_starts_with=key) if i.name == key), None)

    def delete(self, key: str) -> None:
        try:
            self._container.delete_blob(key)
        except Exception as error:
            _pass_over_missing(error)

    def first(self, prefix: str) -> None:
        next(self._container.list_blobs(name_starts_with=prefix, results_per_page=1), None)


class Folder(ObjectStore):
    """A folder of this machine; keys are paths in it."""

    advice = "check the path and its permissions"

    def __init__(self, root: Path) -> None:
        self._root = root

    def get(self, key: str, path: Path) -> None:
        shutil.copyfile(self._root / key, path)

    def put(self, path: Path, key: str) -> None:
        target = self._root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            shutil.copyfile(path, temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def sizes(self, prefix: str) -> dict[str, int]:
        files = (path for path in (self._root / prefix).rglob("*") if path.is_file())
        return {str(path.relative_to(self._root)): path.stat().st_size for path in files}

    def size(self, key: str) -> int | None:
        path = self._root / key
        return path.stat().st_size if path.is_file() else None

    def delete(self, key: str) -> None:
        (self._root / key).unlink(missing_ok=True)

    def first(self, prefix: str) -> None:
        next(os.scandir(self._root), None)


def load_clients(scheme: str) -> None:
    """Import what `connect` needs, which takes a while the first time."""
    if scheme:
        importlib.import_module("composer.utils.object_store")


def connect(scheme: str, bucket: str, connect_seconds: float, read_seconds: float) -> ObjectStore:
    """The object store of a URI's scheme ("" is the folder `bucket`). May already ask the provider."""
    if scheme == "":
        return Folder(Path(bucket))
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


SCHEMES: dict[str, Any] = {"s3": S3, "gs": GCS, "oci": OCI, "azure": Azure}


def _pass_over_missing(error: Exception) -> None:
    if fault_of(error).cause != "missing":
        raise error
