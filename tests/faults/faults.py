"""The faults to test."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.faults.scene import DEADLINE, Fault, Scene
from tests.servers import Bucket, S3Server
from tests.services.object_stores import Azurite, ObjectServer

# Maximum seconds between a fault and the end of the run: the steps whose shards are local, and an orderly shutdown. If
# the run waits for a server, add the deadline or 10 s, the minimum for a fetch; twice, because a shard whose prefetch
# failed is fetched again when it is needed.
AT_ONCE = 20.0
WAITED = AT_ONCE + 2 * max(DEADLINE, 10.0)
START = 90.0  # mostly the start of Python, which takes twice as long on a busy machine
OUTAGE = 5.0  # seconds


def original(scene: Scene) -> bytes:
    return (scene.source / scene.victim).read_bytes()


def server_of(scene: Scene) -> S3Server | ObjectServer:
    assert scene.server is not None
    return scene.server


def s3_of(scene: Scene) -> S3Server:
    assert isinstance(scene.server, S3Server)
    return scene.server


def azurite_of(scene: Scene) -> Azurite:
    assert isinstance(scene.server, Azurite)
    return scene.server


def remove(scene: Scene) -> None:
    assert scene.bucket is not None
    scene.bucket.delete(scene.key)


def corrupt(scene: Scene) -> None:
    assert scene.bucket is not None
    content = bytearray(original(scene))
    content[len(content) // 2] ^= 1
    scene.bucket.put(scene.key, bytes(content))


def truncate(scene: Scene) -> None:
    assert scene.bucket is not None
    scene.bucket.put(scene.key, original(scene)[:100])


def restore(scene: Scene) -> None:
    assert scene.bucket is not None
    scene.bucket.put(scene.key, original(scene))


def swap(scene: Scene) -> None:
    """Replace the shard by another one of the data set."""
    assert scene.bucket is not None
    others = sorted(scene.source.glob("train/*/shard.*"))
    other = next(
        path for path in others if path.stat().st_size == len(original(scene)) and path.read_bytes() != original(scene)
    )
    scene.bucket.put(scene.key, other.read_bytes())


def empty(scene: Scene) -> None:
    """Delete every object."""
    assert isinstance(scene.bucket, Bucket)
    keys = [{"Key": key} for key in scene.bucket.keys()]  # noqa: SIM118 -- a method of Bucket
    s3_of(scene).client().delete_objects(Bucket=scene.bucket.name, Delete={"Objects": keys})


def fill_again(scene: Scene) -> None:
    assert scene.bucket is not None
    scene.bucket.upload_folder(scene.source, "data")


def stop_a_while(scene: Scene) -> None:
    server_of(scene).stop()
    time.sleep(OUTAGE)
    server_of(scene).start()


def pause_a_while(scene: Scene) -> None:
    server_of(scene).pause()
    time.sleep(OUTAGE)
    server_of(scene).resume()


def stop(scene: Scene) -> None:
    server_of(scene).stop()


def start(scene: Scene) -> None:
    server_of(scene).start()


def pause(scene: Scene) -> None:
    server_of(scene).pause()


def resume(scene: Scene) -> None:
    server_of(scene).resume()


def change_credentials(scene: Scene) -> None:
    s3_of(scene).put_credentials("another-key", "another-secret")


def change_credentials_back(scene: Scene) -> None:
    s3_of(scene).put_credentials(scene.environment["AWS_ACCESS_KEY_ID"], scene.environment["AWS_SECRET_ACCESS_KEY"])


def change_key(scene: Scene) -> None:
    azurite_of(scene).put_key()


def change_key_back(scene: Scene) -> None:
    azurite_of(scene).put_key(scene.environment["AZURE_ACCOUNT_ACCESS_KEY"])


def empty_bucket_name(scene: Scene) -> None:
    """Delete the bucket that the command names."""
    assert scene.bucket is not None
    scene.bucket.remove()


def make_bucket(scene: Scene) -> None:
    assert scene.bucket is not None
    scene.bucket.create()
    scene.bucket.upload_folder(scene.source, "data")


def fill_disk(scene: Scene) -> None:
    assert scene.process is not None
    # The file system is mounted for this process only.
    filler = Path(f"/proc/{scene.process.pid}/root{scene.cache}/filler")
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC


def delete_local(scene: Scene) -> None:
    os.unlink(scene.cache / scene.victim)


def restore_local(scene: Scene) -> None:
    shutil.copyfile(scene.source / scene.victim, scene.cache / scene.victim)


def nothing(scene: Scene) -> None:
    pass


_S3_FAULTS = [
    Fault(
        "missing-before",
        "a shard is missing from the bucket, before the start",
        remove,
        restore,
        line="missing; copy the data set there again",
        before=True,
        bound=START,
    ),
    Fault(
        "missing",
        "a shard is deleted from the bucket while the run trains",
        remove,
        restore,
        line="no such object",
        bound=AT_ONCE,
    ),
    Fault(
        "missing-rclone",
        "the same on another server (rclone)",
        remove,
        restore,
        line="no such object",
        bound=AT_ONCE,
        server="rclone",
    ),
    Fault(
        "corrupt",
        "one bit of a shard flips in the bucket",
        corrupt,
        restore,
        line="its xxh64 hash differs from the one in index.json (fetched twice)",
        bound=AT_ONCE,
    ),
    Fault(
        "corrupt-zstd",
        "one bit of a zstd-compressed shard flips in the bucket",
        corrupt,
        restore,
        line="its xxh64 hash differs from the one in index.json (fetched twice)",
        bound=AT_ONCE,
        compression="zstd",
        quick=(2,),
    ),
    Fault(
        "truncated",
        "a shard is replaced by its first 100 bytes",
        truncate,
        restore,
        line="100 bytes instead of",
        bound=AT_ONCE,
    ),
    Fault(
        "swapped",
        "a shard is replaced by another shard of the data set",
        swap,
        restore,
        line="its xxh64 hash differs from the one in index.json (fetched twice)",
        bound=AT_ONCE,
        quick=(),
    ),
    Fault(
        "emptied",
        "the bucket is emptied while the run trains",
        empty,
        fill_again,
        line="no such object",
        bound=AT_ONCE,
        quick=(),
    ),
    Fault(
        "corrupt-mirrored",
        "one bit of a shard flips in the bucket, and `data.mirror` has a good copy",
        corrupt,
        restore,
        recovers=True,
        bound=AT_ONCE,
        mirrored=True,
    ),
    Fault(
        "stopped-a-while",
        f"the server is stopped (connection refused) and started again {OUTAGE:.0f} s later; `data.deadline` 60 s",
        stop_a_while,
        nothing,
        outage=True,
        recovers=True,
        bound=60.0,
        quick=(1,),
        settings=("data.deadline=60s",),
    ),
    Fault(
        "paused-a-while",
        f"the server does not respond for {OUTAGE:.0f} s; `data.deadline` 60 s",
        pause_a_while,
        nothing,
        outage=True,
        recovers=True,
        bound=60.0,
        settings=("data.deadline=60s",),
    ),
    Fault(
        "stopped",
        "the server is stopped for good (connection refused)",
        stop,
        start,
        line="cannot be reached, tried for",
        bound=WAITED,
    ),
    Fault(
        "paused",
        "the server accepts connections but never responds again",
        pause,
        resume,
        line="cannot be reached, tried for",
        bound=WAITED,
    ),
    Fault(
        "wrong-credentials",
        "the credentials are wrong, before the start",
        change_credentials,
        change_credentials_back,
        line="; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        before=True,
        bound=START,
    ),
    Fault(
        "revoked-credentials",
        "the credentials stop working while the run trains",
        change_credentials,
        change_credentials_back,
        line="; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        bound=AT_ONCE,
    ),
    Fault(
        "no-bucket",
        "the bucket does not exist, before the start",
        empty_bucket_name,
        make_bucket,
        line="no such bucket: ",
        before=True,
        bound=START,
    ),
    Fault(
        "disk-full",
        "the disk of the cache fills up while the run trains",
        fill_disk,
        nothing,  # the file system ends with the process
        line="disk is full",
        bound=AT_ONCE,
        small_disk=True,
    ),
    Fault(
        "local-deleted",
        "without `data.remote`: a shard is deleted from the disk while the run trains",
        delete_local,
        restore_local,
        line="no longer exists",
        bound=AT_ONCE,
        server="",
    ),
]

_ELSEWHERE = {"azurite": "Azurite", "google": "Google's emulator"}
_KEY = {"do": change_key, "repair": change_key_back, "line": "; check AZURE_ACCOUNT_NAME"}


def _faults() -> Iterator[Fault]:
    """Yield every fault, and the main ones on the other stores too."""
    main = {"missing-before", "missing", "corrupt", "stopped-a-while", "stopped", "paused", "no-bucket"}
    for fault in _S3_FAULTS:
        yield fault
        for server, name in _ELSEWHERE.items():
            same = replace(fault, name=f"{fault.name}-{server}", what=f"{fault.what}; {name}", server=server, quick=())
            if fault.name in main:
                yield same
            elif server == "azurite" and fault.name in ("wrong-credentials", "revoked-credentials"):
                yield replace(same, **_KEY)


FAULTS = list(_faults())
