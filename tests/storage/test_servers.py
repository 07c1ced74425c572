"""The test servers behave as other tests assume."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from tests.servers import Bucket


@pytest.fixture(params=["s3", "rclone_s3"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    return request.getfixturevalue(request.param)


def test_data_survive_a_restart(bucket: Bucket):
    bucket.put("folder/object", b"content")
    bucket.server.stop()
    with pytest.raises(BotoCoreError):
        bucket.get("folder/object")
    bucket.server.start()
    assert bucket.get("folder/object") == b"content" and bucket.keys() == ["folder/object"]


def test_credentials_are_enforced_and_can_change(bucket: Bucket):
    bucket.put("object", b"content")
    old = bucket.server.client()
    bucket.server.put_credentials("another-key", "another-secret")
    with pytest.raises(ClientError, match="InvalidAccessKeyId|SignatureDoesNotMatch"):
        old.get_object(Bucket=bucket.name, Key="object")
    assert bucket.get("object") == b"content"


def test_paused_server_answers_only_after_resuming(bucket: Bucket):
    bucket.put("object", b"content")
    client = bucket.server.client(read_timeout=1)
    bucket.server.pause()
    with pytest.raises(BotoCoreError, match="timeout"):
        client.get_object(Bucket=bucket.name, Key="object")
    bucket.server.resume()
    assert bucket.get("object") == b"content"


def test_the_server_dies_with_the_process_that_started_it(tmp_path: Path):
    code = (
        "import sys, time; from pathlib import Path; from tests.servers import rclone_server;"
        f"server = rclone_server(Path({str(tmp_path)!r})).start(); print(server.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    process.communicate()
    end = time.monotonic() + 5
    while _alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
