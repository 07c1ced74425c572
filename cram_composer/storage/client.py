"""One interface to object stores and folders: atomic transfers of single objects, retried until a deadline.

A URI is `s3://BUCKET/PATH`, `gs://`, `azure://`, or the path of a folder. `S3_ENDPOINT_URL` names another S3
server, as for Composer and Streaming.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from cram_composer.config.paths import expand
from cram_composer.config.redaction import redact_text
from cram_composer.config.units import split_uri
from cram_composer.errors import CramError
from cram_composer.storage.bounded import BoundedFile
from cram_composer.storage.error_causes import Cause, classify_error
from cram_composer.storage.providers import (
    CONNECT_SECONDS,
    READ_SECONDS,
    SCHEMES,
    ObjectStore,
    connect,
    load_clients,
)

METADATA_BYTES = 256 << 20  # more than any manifest, index, record or tokenizer
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 10.0  # seconds between attempts, doubled each time
_WARN_AFTER = 10.0  # seconds of retrying before a warning
_Result = TypeVar("_Result")


class StorageError(CramError):
    """A failed storage operation, described in one line.

    Attributes:
        cause: what is wrong.
        uri: URI of the object, or of the root.
    """

    def __init__(self, message: str, cause: Cause, uri: str) -> None:
        super().__init__(message)
        self.cause = cause
        self.uri = uri

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.cause, self.uri)


def is_remote(uri: str) -> bool:
    """Return True if `uri` names an object store; anything else is a folder."""
    return "://" in uri


class Storage:
    """Objects below one URI, addressed by relative name. Can be pickled, forked and shared between threads.

    Args:
        uri: of an object store, or the path of a folder. No connection is made yet.
        deadline: seconds to keep retrying connection errors.

    Raises:
        ConfigError: an unknown URI scheme, or no bucket.
    """

    def __init__(self, uri: str, deadline: float = 120.0) -> None:
        self.deadline = deadline
        self._local = threading.local()  # one client per thread; a forked process creates its own
        parts = split_uri(uri)
        if parts is None:
            self._scheme, self._bucket, self._prefix = "", str(expand(uri)), ""
            self.uri = self._bucket
            return
        self.uri = uri.rstrip("/")
        self._scheme, self._bucket, path = parts
        self._prefix = f"{path}/" if path else ""

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage, (self.uri, self.deadline)

    def object_uri(self, name: str) -> str:
        """Return the URI of an object."""
        return f"{self.uri}/{name}" if name else self.uri

    def download(self, name: str, path: Path, limit: int = METADATA_BYTES, deadline: float | None = None) -> None:
        """Download an object into the file `path`, replacing it atomically.

        Args:
            name: of the object.
            path: file to write.
            limit: bytes after which the download is given up.
            deadline: seconds for the whole download, retries included, however slowly the server sends; default: that
                of the storage.

        Raises:
            StorageError: the object cannot be read in time, or is larger than `limit`.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
        seconds = self.deadline if deadline is None else deadline
        load_clients(self._scheme)
        ends = time.monotonic() + seconds

        def get(store: ObjectStore) -> None:
            with BoundedFile(temporary, limit, ends) as file:
                store.get(self._prefix + name, file)

        try:
            self._retry(name, get, f" (writing {path})", seconds)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def upload(self, path: Path, name: str) -> None:
        """Upload the file `path` to an object, replacing it atomically. Raises StorageError."""
        if not path.is_file():
            raise StorageError(
                f"{path}: no such file; cannot upload it to {self.object_uri(name)}", "missing", str(path)
            )
        self._retry(name, lambda store: store.put(path, self._prefix + name))

    def list_sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the bytes of every object in the folder `prefix` (all for ""), by name relative to the root."""
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        found = self._retry(prefix, lambda store: store.list_sizes(self._prefix + folder))
        # Some tools create keys that end in a slash to represent folders.
        return {key[len(self._prefix) :]: size for key, size in found.items() if not key.endswith("/")}

    def size(self, name: str) -> int | None:
        """Return the size of an object in bytes, None if it does not exist. Raises StorageError for other errors."""
        return self._retry(name, lambda store: store.size(self._prefix + name))

    def delete(self, name: str) -> None:
        """Delete an object if it exists."""
        self._retry(name, lambda store: store.delete(self._prefix + name))

    def check_access(self, write: bool = False) -> None:
        """Check the connection, the credentials and the bucket. Raises StorageError.

        Args:
            write: also write and delete an object.
        """
        if not (write and self._scheme == ""):  # a folder is created by the first write
            self._retry("", lambda store: store.probe(self._prefix))
        if write:
            name = f".cram-write-check-{uuid.uuid4().hex}"
            with tempfile.NamedTemporaryFile() as empty:
                self.upload(Path(empty.name), name)
            self.delete(name)

    def _retry(
        self,
        name: str,
        operation: Callable[[ObjectStore], _Result],
        writing: str = "",
        deadline: float | None = None,
    ) -> _Result:
        """Run an operation, retrying connection errors until the deadline and stale credentials once."""
        seconds = self.deadline if deadline is None else deadline
        load_clients(self._scheme)  # the first import takes seconds that must not count against the deadline
        started = time.monotonic()
        wait, warned, renewed = _FIRST_WAIT, False, False
        while True:
            fresh = False
            remaining = seconds - (time.monotonic() - started)
            try:
                store, fresh = self._thread_client(remaining)
                return operation(store)
            except Exception as error:
                failure = classify_error(error)
            spent = time.monotonic() - started
            advice = SCHEMES[self._scheme].advice if self._scheme else "check the path and its permissions"
            if failure.cause != "unreachable":
                self._local.__dict__.clear()
                if failure.cause == "credentials" and not fresh and not renewed:
                    renewed = True  # the credentials may have been replaced since the client was created
                    continue
                raise self._storage_error(name, failure.cause, failure.summary, advice, writing)
            wait = min(wait * 2, _LONGEST_WAIT)
            if spent >= seconds:
                summary = f"cannot be reached, tried for {spent:.0f} s: {failure.summary}"
                raise self._storage_error(name, failure.cause, summary, f"check the network; {advice}", writing)
            if spent > _WARN_AFTER and not warned:
                warned = True
                logging.getLogger(__name__).warning(
                    "%s: %s; retrying for %.0f s", self.object_uri(name), failure.summary, seconds - spent
                )
            pause = wait * random.uniform(0.5, 1.0)  # noqa: S311 - spreads the load of several processes
            # The last attempt starts at the deadline, even if the next wait would be longer.
            time.sleep(min(pause, seconds - spent))

    def _thread_client(self, remaining: float) -> tuple[ObjectStore, bool]:
        """Return this thread's client and whether it is new; its timeouts end within the remaining seconds."""
        cached = self._local.__dict__
        # Whole seconds, so that a deadline below the usual timeout does not need a new client for every object.
        seconds = min(READ_SECONDS, float(max(1, math.ceil(remaining))))
        cache_key = os.getpid(), seconds
        fresh = cached.get("cache_key") != cache_key
        if fresh:
            cached["store"] = connect(self._scheme, self._bucket, min(CONNECT_SECONDS, seconds), seconds)
            cached["cache_key"] = cache_key
        return cached["store"], fresh

    def _storage_error(self, name: str, cause: Cause, summary: str, advice: str, writing: str) -> StorageError:
        uri = self.object_uri(name)
        message = {
            "missing": f"{uri}: no such object ({summary}); check the name or upload it",
            "bucket": f"{uri}: no such bucket: {self._bucket} ({summary}); create it or correct its name",
            "disk-full": f"{uri}: {summary}{writing}; free some space or use another disk",
            "too-large": f"{uri}: {summary}; it is another file than expected, copy the right one there again",
            "other": f"{uri}: {summary}{writing}; check the name, the path and their permissions",
        }.get(cause, f"{uri}: {summary}; {advice}")
        return StorageError(redact_text(message), cause, uri)  # the endpoint's URL may have a password
