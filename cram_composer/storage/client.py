"""Object storage and folders alike: one object at a time, whole or not at all, tried again for a bounded time.

A URI is `s3://BUCKET/PATH`, `gs://`, `oci://`, `azure://`, or the path of a folder. `S3_ENDPOINT_URL` names another S3
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
from cram_composer.errors import ConfigError, CramError
from cram_composer.storage.faults import fault_of
from cram_composer.storage.providers import CONNECT_SECONDS, READ_SECONDS, SCHEMES, ObjectStore, connect, load_clients

_FIRST_WAIT, _LONGEST_WAIT = 0.25, 10.0  # seconds between attempts, doubled each time
_SAY_AFTER = 10.0  # seconds of trying again in silence
_Result = TypeVar("_Result")


class StorageError(CramError):
    """What could not be done and why, in one line.

    `cause` is one of storage_faults.CAUSES, `uri` that of the object, or of the root.
    """

    def __init__(self, message: str, cause: str, uri: str) -> None:
        super().__init__(message)
        self.cause = cause
        self.uri = uri

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.cause, self.uri)


def is_remote(uri: str) -> bool:
    """Whether `uri` names an object store; anything else is a folder."""
    return "://" in uri


def open_storage(uri: str, deadline: float = 120.0) -> Storage:
    """The storage at `uri`; nothing is asked of it yet. Raises ConfigError for a scheme that is none.

    `deadline` is in seconds: what fails for want of a connection is tried again for that long, and then given up.
    """
    return Storage(uri, deadline)


class Storage:
    """Objects under one URI, by names relative to it. May be pickled, and used after a fork and in several threads."""

    def __init__(self, uri: str, deadline: float = 120.0) -> None:
        self.deadline = deadline
        self._local = threading.local()  # a client per thread, and made anew in another process
        if not is_remote(uri):
            self._scheme, self._bucket, self._prefix = "", str(expand(uri)), ""
            self.uri = self._bucket
            return
        self.uri = uri.rstrip("/")
        self._scheme, _, rest = self.uri.partition("://")
        self._bucket, _, path = rest.partition("/")
        if self._scheme not in SCHEMES or not self._bucket:
            known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            raise ConfigError(f"{uri}: not the URI of an object store; it is one of {known} with a bucket, or a folder")
        self._prefix = f"{path}/" if path else ""

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage, (self.uri, self.deadline)

    def uri_of(self, name: str) -> str:
        """The URI of an object."""
        return f"{self.uri}/{name}" if name else self.uri

    def download(self, name: str, path: Path) -> None:
        """Fetch an object into the file `path`, which is replaced once it is whole. Raises StorageError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
        try:
            self._try(name, lambda store: store.get(self._prefix + name, temporary), f" (writing {path})")
            os.replace(temporary, path)
        finally:
            for left in path.parent.glob(
                f"{_escaped(temporary.name)}*"
            ):  # Composer's stores put their own suffix on it
                with contextlib.suppress(OSError):
                    left.unlink()

    def upload(self, path: Path, name: str) -> None:
        """Write the file `path` to an object, which is replaced once it is whole. Raises StorageError."""
        if not path.is_file():
            raise StorageError(f"{path}: no such file, to be uploaded to {self.uri_of(name)}", "missing", str(path))
        self._try(name, lambda store: store.put(path, self._prefix + name))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of every object in the folder `prefix` and below (all, for ""), by name relative to the root."""
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        found = self._try(prefix, lambda store: store.sizes(self._prefix + folder))
        # A key that ends in a slash is what some tools make of a folder.
        return {key[len(self._prefix) :]: size for key, size in found.items() if not key.endswith("/")}

    def size(self, name: str) -> int | None:
        """Bytes of an object, None if it is not there. Raises StorageError for anything else."""
        return self._try(name, lambda store: store.size(self._prefix + name))

    def delete(self, name: str) -> None:
        """Delete an object; one that is not there is fine."""
        self._try(name, lambda store: store.delete(self._prefix + name))

    def check(self, write: bool = False) -> None:
        """Make sure that it answers, that the credentials are good and the bucket is there.

        With `write`, that an object can be written and deleted too. Raises StorageError.
        """
        if not (write and self._scheme == ""):  # a folder is made when it is first written to
            self._try("", lambda store: store.first(self._prefix))
        if write:
            name = f".cram-write-check-{uuid.uuid4().hex}"
            with tempfile.NamedTemporaryFile() as empty:
                self.upload(Path(empty.name), name)
            self.delete(name)

    def _try(self, name: str, operation: Callable[[ObjectStore], _Result], writing: str = "") -> _Result:
        """Do it, again and again while it may yet work and there is time."""
        load_clients(self._scheme)  # seconds the first time, which are not the connection's
        started = time.monotonic()
        wait, said, renewed = _FIRST_WAIT, False, False
        while True:
            fresh = False
            left = self.deadline - (time.monotonic() - started)
            try:
                store, fresh = self._store(left)
                return operation(store)
            except Exception as error:
                fault = fault_of(error)
            spent = time.monotonic() - started
            advice = SCHEMES[self._scheme].advice if self._scheme else "check the path and its permissions"
            if fault.cause != "unreachable":
                self._local.__dict__.clear()
                if fault.cause == "credentials" and not fresh and not renewed:
                    renewed = True  # those it was made with may have been replaced meanwhile
                    continue
                raise self._error(name, fault.cause, fault.words, advice, writing)
            wait = min(wait * 2, _LONGEST_WAIT)
            if spent >= self.deadline:
                words = f"cannot be reached, tried for {spent:.0f} s: {fault.words}"
                raise self._error(name, fault.cause, words, f"check the network; {advice}", writing)
            if spent > _SAY_AFTER and not said:
                said = True
                logging.getLogger(__name__).warning(
                    "%s: %s; trying again for %.0f s", self.uri_of(name), fault.words, self.deadline - spent
                )
            # The last attempt is at the deadline, whatever the wait has grown to.
            time.sleep(min(wait * random.uniform(0.5, 1.0), self.deadline - spent))

    def _store(self, left: float) -> tuple[ObjectStore, bool]:
        """This thread's client, or with little time left one of shorter time limits; and whether it is new."""
        kept = self._local.__dict__
        # To the second, so that a deadline shorter than the usual limit does not take a new client for every object.
        seconds = min(READ_SECONDS, float(max(1, math.ceil(left))))
        made_for = os.getpid(), seconds
        fresh = kept.get("made_for") != made_for
        if fresh:
            kept["store"] = connect(self._scheme, self._bucket, min(CONNECT_SECONDS, seconds), seconds)
            kept["made_for"] = made_for
        return kept["store"], fresh

    def _error(self, name: str, cause: str, words: str, advice: str, writing: str) -> StorageError:
        uri = self.uri_of(name)
        message = {
            "missing": f"{uri}: there is no such object ({words}); check the name, or put it there",
            "bucket": f"{uri}: there is no such bucket as {self._bucket} ({words}); make it or correct its name",
            "disk-full": f"{uri}: {words}{writing}; free some space or use another disk",
            "other": f"{uri}: {words}{writing}; check the name, the path and their permissions",
        }.get(cause, f"{uri}: {words}; {advice}")
        return StorageError(message, cause, uri)


def _escaped(name: str) -> str:
    """A file name as a glob pattern of itself."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
