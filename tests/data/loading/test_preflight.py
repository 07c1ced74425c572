"""Checks before the clock starts: problems are repaired where possible, or reported in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cram_composer.config.schema.data import DataConfig
from cram_composer.data.loading import preflight
from cram_composer.data.loading.open_dataset import open_train
from cram_composer.data.loading.prepare import PreparedDataset, prepare_dataset
from cram_composer.errors import CramError
from tests.data.data_sets import number_of, write_data_set
from tests.servers import Bucket, S3Server

ROWS = 512


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_data_set(tmp_path / "source", ROWS)


def prepared(cache: Path, remote: Path | str, **settings) -> PreparedDataset:
    settings = {"deadline": "20s", **settings}
    return prepare_dataset(DataConfig(local=str(cache), remote=str(remote), **settings), True, lambda: None)


def refused(cache: Path, remote: Path | str, **settings) -> str:
    with pytest.raises(CramError) as error:
        prepared(cache, remote, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def shard(root: Path, number: int = 3) -> Path:
    return root / "train" / "00000" / f"shard.{number:05d}.mds"


def test_metadata_are_downloaded_and_one_line_counts_the_shards(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = prepared(tmp_path / "cache", source)
    for name in ("manifest.json", "tokenizer/tokenizer.json", "train/index.json", "validation/index.json"):
        assert (data.root / name).read_bytes() == (source / name).read_bytes()
    assert not list(data.root.rglob("*.mds")) and not list(data.root.rglob("*fetching*"))
    (line,) = capsys.readouterr().out.splitlines()
    count = len(list(source.rglob("*.mds")))
    assert line.startswith(f"{source}: {count} shards of ") and "0 of them in" in line and "checked in" in line


@pytest.mark.parametrize("key", ["cache_limit", "mirror"])
def test_keys_of_a_cache_are_refused_without_object_storage(source: Path, tmp_path: Path, key: str):
    build = tmp_path / "build.yaml"
    build.write_text(f"output: {source}\nsources: []\n")
    with pytest.raises(CramError, match=f"data.{key}: has no effect, because .*source is not in object storage"):
        prepare_dataset(DataConfig(build=str(build), **{key: "5gb"}), True, lambda: None)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda root: (root / "manifest.json").unlink(), "manifest.json: no such object"),
    "broken manifest": (lambda root: (root / "manifest.json").write_text("{"), "manifest.json: damaged"),
    "old manifest": (
        lambda root: (root / "manifest.json").write_text('{"format_version": 1}'),
        "format version 1, but",
    ),
    "no tokenizer": (lambda root: (root / "tokenizer/tokenizer.json").unlink(), "tokenizer.json: no such"),
    "other tokenizer": (lambda root: (root / "tokenizer/tokenizer.json").write_text("[]"), "not the tokenizer that"),
    "no index": (lambda root: (root / "train/index.json").unlink(), "train/index.json: no such object"),
    "broken index": (lambda root: (root / "train/index.json").write_text("{}"), "index.json: not a shard index"),
    "short index": (
        lambda root: (root / "train/index.json").write_text('{"shards": [], "version": 2}'),
        "lists 0 records, the manifest 64",
    ),
    "missing shard": (lambda root: shard(root).unlink(), "shard.00003.mds: missing; copy the data set there again"),
    "short shard": (lambda root: shard(root).write_bytes(b"x"), "shard.00003.mds: 1 bytes instead of"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_damaged_remote_is_refused_by_name_or_replaced_by_the_mirror(
    source: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
):
    mirror = Path(shutil.copytree(source, tmp_path / "mirror"))
    change, message = BROKEN[case]
    change(source)
    line = refused(tmp_path / "cache", source)
    assert message in line and str(source) in line and "fetching" not in line
    assert not (tmp_path / "cache" / "manifest.json").exists() or "shard." in line
    capsys.readouterr()
    data = prepared(tmp_path / "other", source, mirror=str(mirror))
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: ") and message.split(";")[0] in warning
    config = DataConfig(num_workers=0)
    assert sorted(number_of(open_train(data, config, seed=1).take(ROWS))) == list(range(ROWS))


def test_several_missing_shards_are_counted(source: Path, tmp_path: Path):
    for number in (3, 4, 5):
        shard(source, number).unlink()
    assert "shard.00003.mds: missing (and 2 more of" in refused(tmp_path / "cache", source)


def test_a_cache_of_another_data_set_is_refused(source: Path, tmp_path: Path):
    prepared(tmp_path / "cache", source)
    other = write_data_set(tmp_path / "other", 256)
    assert "contains a different data set from" in refused(tmp_path / "cache", other)


def test_leftovers_of_killed_processes_and_damaged_shards_are_removed_from_the_cache(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cache = tmp_path / "cache"
    # Without prefetching: its threads may still fetch a shard that the test has damaged.
    open_train(prepared(cache, source), DataConfig(num_workers=0, prefetch=0), seed=1).take(ROWS)
    flipped = bytearray(shard(cache, 1).read_bytes())
    flipped[-1] ^= 1
    shard(cache, 1).write_bytes(flipped)
    shard(cache, 2).write_bytes(b"short")
    mine, dead = (shard(cache).with_name(name) for name in (preflight.temporary_name(), "x"))
    dead = dead.with_name(mine.name.rsplit("-", 2)[0] + "-999999999-0")
    for path in (mine, dead):
        path.touch()
    capsys.readouterr()
    prepared(cache, source, verify="size")
    assert shard(cache, 1).exists() and not shard(cache, 2).exists()
    prepared(cache, source)
    assert not shard(cache, 1).exists() and shard(cache, 0).exists()
    assert mine.exists() and not dead.exists()  # another process of this machine may be fetching
    count = len(list((source / "train").rglob("*.mds")))
    assert f"{count - 2} of them in" in capsys.readouterr().out.splitlines()[-1]


def test_disk_space_is_checked(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage._replace(free=6000))
    line = refused(tmp_path / "cache", source)
    assert "free; free some space, set data.local to a folder on another disk, or set data.cache_limit" in line
    prepared(tmp_path / "cache", source, cache_limit="5000b")
    line = refused(tmp_path / "cache", source, cache_limit="1kb")
    assert "data.cache_limit: must be at least five times the largest shard" in line


def test_only_used_streams_must_exist(tmp_path: Path):
    from cram_composer.config.schema.data import StreamWeightConfig

    source = write_data_set(tmp_path / "source", {"train-web": 128, "train-wiki": 64})
    next((source / "train-wiki").rglob("*.mds")).unlink()
    assert "train-wiki" in refused(tmp_path / "cache", source)
    prepared(tmp_path / "cache", source, mixture={"wiki": StreamWeightConfig(repeat=0.0)})


def test_misconfigured_server_is_one_line(
    s3: Bucket, seaweed: S3Server, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = tmp_path / "cache"
    uri = s3.upload_folder(source, "data")
    assert len(prepared(cache, uri).manifest["splits"]) == 2
    assert "no such object" in refused(cache, f"{uri}-typo")
    assert "no such bucket" in refused(cache, uri.replace("s3://", "s3://no-"))
    s3.delete("data/train/00000/shard.00003.mds")
    assert f"{uri}/train/00000/shard.00003.mds: missing" in refused(cache, uri)
    with monkeypatch.context() as other:
        other.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        assert "the secret key is wrong" in refused(cache, uri)
    with monkeypatch.context() as other:
        other.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:1")
        assert "cannot be reached" in refused(cache, uri, deadline="2s")


def test_index_and_manifest_agree_on_rows(source: Path, tmp_path: Path):
    manifest = json.loads((source / "manifest.json").read_text())
    manifest["splits"]["train"]["rows"] -= 1
    (source / "manifest.json").write_text(json.dumps(manifest))
    assert "511 rows, but 64 blocks of 8 rows" in refused(tmp_path / "cache", source)
