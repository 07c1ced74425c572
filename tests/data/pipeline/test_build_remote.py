"""Builds with output in object storage, against a real S3 server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cram_composer.config.schema.data_build import DataBuildConfig
from cram_composer.data.pipeline.build import build
from cram_composer.errors import CramError
from cram_composer.storage.client import Storage, StorageError
from tests.data.pipeline.test_build import files_of
from tests.servers import Bucket


@pytest.fixture
def remote(config: DataBuildConfig, s3: Bucket, tmp_path: Path) -> DataBuildConfig:
    config.output = f"{s3.uri}/set"
    config.work = str(tmp_path / "work")
    config.compression = "zstd"
    return config


def objects(bucket: Bucket) -> dict[str, bytes]:
    return {key.removeprefix("set/"): bucket.get(key) for key in bucket.keys("set/")}


def test_objects_are_the_files_of_a_local_build(remote, s3, tmp_path):
    assert build(remote, progress=False) == f"{s3.uri}/set"
    local = build(remote.model_copy(update={"output": str(tmp_path / "local"), "work": None}), progress=False)
    assert objects(s3) == files_of(local)
    assert not (tmp_path / "work").exists()


def test_partitions_upload_their_own_shards(remote, s3):
    build(remote.model_copy(update={"partitions": 2}), progress=False)
    names = set(objects(s3))
    assert {"train/00000/shard.00000.mds.zstd", "train/00001/shard.00000.mds.zstd", "manifest.json"} <= names
    assert not any(name.endswith("0/index.json") for name in names)


def test_interrupted_build_is_incomplete_and_resumes_without_uploading_again(remote, s3, monkeypatch):
    uploaded: list[str] = []
    upload = Storage.upload

    def train_only(self: Storage, path: Path, name: str) -> None:
        if name.startswith("validation"):
            raise StorageError("the network is gone", "unreachable", self.uri)
        upload(self, path, name)
        uploaded.append(name)

    monkeypatch.setattr(Storage, "upload", train_only)
    with pytest.raises(CramError, match="the network is gone"):
        build(remote, progress=False)
    assert "train/00000/shard.00000.mds.zstd" in uploaded
    assert "manifest.json" not in objects(s3)
    again: list[str] = []

    def counted(self: Storage, path: Path, name: str) -> None:
        again.append(name)
        upload(self, path, name)

    monkeypatch.setattr(Storage, "upload", counted)
    build(remote, progress=False)
    assert [name for name in again if name.endswith(".zstd")] == ["validation/00000/shard.00000.mds.zstd"]
    assert "manifest.json" in objects(s3)


def test_finished_data_set_is_kept_and_another_configuration_refused(remote, s3):
    build(remote, progress=False)
    before = objects(s3)
    assert build(remote, progress=False) == f"{s3.uri}/set"
    with pytest.raises(CramError, match=r"s3://.*: contains a data set of another configuration .*overwrite=true"):
        build(remote.model_copy(update={"seed": 1}), progress=False)
    assert objects(s3) == before
    build(remote.model_copy(update={"seed": 1, "overwrite": True}), progress=False)
    assert json.loads(objects(s3)["manifest.json"])["seed"] == 1


def test_overwriting_leaves_no_shard_of_the_old_one(remote, s3):
    build(remote.model_copy(update={"partitions": 2, "jobs": 1}), progress=False)
    build(remote.model_copy(update={"overwrite": True}), progress=False)
    assert [name for name in objects(s3) if name.startswith("train/")] == [
        "train/00000/shard.00000.mds.zstd",
        "train/index.json",
    ]


def test_lost_upload_is_detected_before_the_manifest_is_written(remote, s3, monkeypatch):
    from cram_composer.data.pipeline import publish

    real_storage = publish.Storage

    class StorageLosingShards:
        def __init__(self, uri: str) -> None:
            self._real = real_storage(uri)

        def __getattr__(self, name: str):
            return getattr(self._real, name)

        def list_sizes(self) -> dict[str, int]:
            s3.delete("set/train/00000/shard.00000.mds.zstd")
            return self._real.list_sizes()

    monkeypatch.setattr(publish, "Storage", StorageLosingShards)
    with pytest.raises(CramError, match=r"train/00000/shard\.00000\.mds\.zstd: missing after its upload"):
        build(remote, progress=False)
    assert "manifest.json" not in objects(s3)
    monkeypatch.undo()
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    build(remote, progress=False)
    assert {"manifest.json", "train/00000/shard.00000.mds.zstd"} <= set(objects(s3))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s3: {"AWS_SECRET_ACCESS_KEY": "wrong"}, "the secret key is wrong"),
        (lambda s3: {"S3_ENDPOINT_URL": "http://127.0.0.1:9"}, "reach"),
    ],
    ids=["credentials", "no-server"],
)
def test_unusable_storage_is_one_line_before_any_work(remote, s3, monkeypatch, tmp_path, spoil, message):
    for name, value in spoil(s3).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("cram_composer.data.pipeline.build.REMOTE_DEADLINE_SECONDS", 5.0)
    with pytest.raises(CramError, match=message) as error:
        build(remote, progress=False)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "work").exists()


def test_no_bucket_is_one_line(remote):
    with pytest.raises(CramError, match="bucket") as error:
        build(remote.model_copy(update={"output": "s3://no-such-bucket-here/set"}), progress=False)
    assert "\n" not in str(error.value)
