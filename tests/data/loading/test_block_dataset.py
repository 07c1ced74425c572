"""Fetching of shards: the right rows or a one-line error, within bounded time."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from cram_composer.config.schema.data import DataConfig
from cram_composer.data.loading.open_dataset import open_train
from cram_composer.data.loading.prepare import prepare_dataset
from cram_composer.data.loading.stream import RowStream
from cram_composer.errors import CramError
from tests.data.data_sets import flip_a_bit, number_of, write_data_set
from tests.servers import Bucket, S3Server

ROWS = 512  # in 16 or more shards of 4 blocks of 8 rows
WORKERS = pytest.mark.parametrize("workers", [0, 1, 2])


def config(root: Path, remote: Path | str | None = None, **settings) -> DataConfig:
    settings = {"remote": None if remote is None else str(remote), "deadline": "12s", **settings}
    return DataConfig(local=str(root), **settings)


def opened(config: DataConfig, before: Callable[[], object] = lambda: None) -> RowStream:
    """Return a stream; `before` is called between the pre-flight check and the first row."""
    data = prepare_dataset(config, True, lambda: None)
    before()
    return open_train(data, config, seed=1)


def shards(root: Path) -> list[Path]:
    return sorted((root / "train" / "00000").glob("shard*"))


def failure(reader: RowStream, rows: int = ROWS) -> str:
    """Return the error that ends reading, after checking that only right rows precede it."""
    seen: list[int] = []
    with pytest.raises(CramError) as error:
        while len(seen) < rows:
            seen += number_of(reader.take(8))
    assert len(seen) == len(set(seen)) < rows
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(params=["none", "zstd"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_data_set(tmp_path / "source", ROWS, compression=request.param)


@WORKERS
def test_shards_are_fetched_on_demand_and_kept(source: Path, tmp_path: Path, workers: int):
    here = write_data_set(tmp_path / "here", ROWS)
    cache = tmp_path / "cache"
    order = number_of(opened(config(here)).take(2 * ROWS))
    reader = opened(config(cache, source, num_workers=workers, prefetch=2))
    assert not shards(cache)
    assert number_of(reader.take(8)) == order[:8]
    assert 0 < len(shards(cache)) < len(shards(source))
    assert number_of(reader.take(2 * ROWS - 8)) == order[8:]
    assert [path.name for path in shards(cache)] == [path.name.removesuffix(".zstd") for path in shards(source)]
    assert not list(cache.rglob("*.fetching*"))


@WORKERS
def test_compressed_data_set_is_unpacked_in_place(tmp_path: Path, workers: int):
    root = write_data_set(tmp_path / "zstd", ROWS, compression="zstd")
    plain = write_data_set(tmp_path / "plain", ROWS)
    order = number_of(opened(config(plain)).take(ROWS))
    for _ in range(2):
        assert number_of(opened(config(root, num_workers=workers)).take(ROWS)) == order
    flip_a_bit(next((root / "train" / "00000").glob("*.mds")))  # a damaged unpacked shard is unpacked again
    assert number_of(opened(config(root, num_workers=workers)).take(ROWS)) == order


LOCAL: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "no longer exists"),
    "truncated": (lambda path: os.truncate(path, 40), "cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read"),
    "garbage": (lambda path: path.write_bytes(os.urandom(path.stat().st_size)), "cannot be read"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
}


@WORKERS
@pytest.mark.parametrize("case", LOCAL)
def test_local_shard_damaged_during_training_is_one_line(tmp_path: Path, case: str, workers: int):
    root = write_data_set(tmp_path / "data", ROWS)
    change, message = LOCAL[case]
    line = failure(opened(config(root, num_workers=workers), lambda: change(shards(root)[5])))
    assert str(shards(root)[5 if case != "missing" else 4].parent / "shard.00005.mds") in line and message in line


REMOTE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "no such object"),
    "truncated": (lambda path: os.truncate(path, 40), "40 bytes instead of"),
    "flipped": (flip_a_bit, "its xxh64 hash differs from the one in index.json (fetched twice)"),
}


@WORKERS
@pytest.mark.parametrize("case", REMOTE)
def test_unavailable_remote_shard_is_one_line_or_comes_from_the_mirror(
    source: Path, tmp_path: Path, case: str, workers: int
):
    change, message = REMOTE[case]
    mirror = Path(shutil.copytree(source, tmp_path / "mirror"))
    bad = shards(source)[5]
    cache = tmp_path / "cache"
    line = failure(opened(config(cache, source, num_workers=workers), lambda: change(bad)))
    assert str(bad) in line and message in line
    assert not (cache / "train" / "00000" / "shard.00005.mds").exists()

    restored = shutil.copyfile(mirror / bad.relative_to(source), bad)
    mirrored = config(tmp_path / "mirrored", source, mirror=str(mirror), num_workers=workers)
    reader = opened(mirrored, lambda: change(Path(restored)))
    assert sorted(number_of(reader.take(ROWS))) == list(range(ROWS))
    del reader

    shutil.copyfile(mirror / bad.relative_to(source), bad)
    both = config(tmp_path / "both", source, mirror=str(mirror), num_workers=workers)
    line = failure(opened(both, lambda: (change(bad), (mirror / bad.relative_to(source)).unlink())))
    assert str(bad) in line and message in line and str(mirror) in line


@WORKERS
def test_cached_shard_damaged_during_training_is_fetched_again(source: Path, tmp_path: Path, workers: int):
    cache = tmp_path / "cache"
    opened(config(cache, source)).take(ROWS)
    kept = cache / "train" / "00000"

    def spoil() -> None:
        os.truncate(kept / "shard.00003.mds", 40)
        (kept / "shard.00005.mds").unlink()

    reader = opened(config(cache, source, num_workers=workers), spoil)
    assert sorted(number_of(reader.take(ROWS))) == list(range(ROWS))


@WORKERS
def test_the_cache_stays_within_its_limit(source: Path, tmp_path: Path, workers: int):
    cache, limit = tmp_path / "cache", 24 << 10
    largest, over = [0], threading.Event()

    def used() -> int:
        sizes = []
        for path in cache.rglob("*"):
            try:
                sizes.append(path.stat().st_size if path.is_file() and path.suffix != ".json" else 0)
            except FileNotFoundError:
                sizes.append(0)
        return sum(sizes)

    def watch() -> None:
        while not over.wait(0.001):
            largest[0] = max(largest[0], used())

    reader = opened(config(cache, source, num_workers=workers, cache_limit=f"{limit}b", prefetch=8))
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        numbers = [number_of(reader.take(ROWS)) for _ in range(3)]
    finally:
        over.set()
        thread.join()
    assert all(sorted(part) == list(range(ROWS)) for part in numbers)
    assert 0 < largest[0] <= limit < sum(path.stat().st_size for path in shards(source)) + (100 << 10)
    assert len(shards(cache)) < len(shards(source))


def test_killed_reader_process_is_one_line(tmp_path: Path):
    reader = opened(config(write_data_set(tmp_path / "data", ROWS), num_workers=2))
    reader.take(8)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(CramError, match=r"^data: a reader process \(pid \d+\) was killed, .*resume from") as error:
        while True:
            reader.take(8)
    assert "\n" not in str(error.value)


def test_unresponsive_reader_process_is_one_line(tmp_path: Path):
    reader = opened(config(write_data_set(tmp_path / "data", ROWS), num_workers=1, timeout="2s"))
    reader.take(8)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(CramError, match="the data loader failed: DataLoader timed out after 2.0 seconds"):
        while True:
            reader.take(8)
    worker.join(10.0)
    assert not worker.is_alive() and not multiprocessing.active_children()


def stored(s3: Bucket, tmp_path: Path, **settings) -> tuple[str, Path]:
    root = write_data_set(tmp_path / "source", ROWS, **settings)
    return s3.upload_folder(root, "data"), root


@WORKERS
def test_epoch_from_a_server(s3: Bucket, tmp_path: Path, workers: int):
    uri, root = stored(s3, tmp_path, compression="zstd")
    reader = opened(config(tmp_path / "cache", uri, num_workers=workers))
    assert number_of(reader.take(ROWS)) == number_of(opened(config(root)).take(ROWS))


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_unresponsive_server_is_one_line_by_the_deadline(s3: Bucket, seaweed: S3Server, tmp_path: Path, workers: int):
    uri, _ = stored(s3, tmp_path)
    reader = opened(config(tmp_path / "cache", uri, num_workers=workers, prefetch=2, deadline="3s"))
    reader.take(8)
    seaweed.pause()
    try:
        started = time.monotonic()
        line = failure(reader)
        assert time.monotonic() - started < 60.0
    finally:
        seaweed.resume()
    # The fetching process reports the first error, a waiting process the second; either may come first.
    assert (uri in line and "cannot be reached" in line) or "not fetched by any process" in line


@pytest.mark.parametrize("workers", [0, 2])
def test_restarted_server_costs_only_time(s3: Bucket, seaweed: S3Server, tmp_path: Path, workers: int):
    uri, _ = stored(s3, tmp_path)
    reader = opened(config(tmp_path / "cache", uri, num_workers=workers, prefetch=2, deadline="60s"))
    seen = number_of(reader.take(8))
    seaweed.pause()
    timer = threading.Timer(4.0, seaweed.resume)
    timer.start()
    seen += number_of(reader.take(ROWS - 8))
    timer.join()
    assert sorted(seen) == list(range(ROWS))


@pytest.mark.parametrize("what", ["length", "vocabulary"])
def test_rows_that_do_not_fit_a_consistent_manifest_are_not_trained_on(tmp_path: Path, what: str):
    root = write_data_set(tmp_path / "data", ROWS)
    manifest = json.loads((root / "manifest.json").read_text())
    if what == "length":
        manifest["sequence_length"] = 8
        for counts in manifest["splits"].values():
            counts["tokens"] = counts["rows"] * 8
    else:
        tokenizer = root / "tokenizer" / "tokenizer.json"
        Tokenizer(WordLevel({f"t{number}": number for number in range(10)}, unk_token="t1")).save(str(tokenizer))
        manifest |= {"vocab_size": 10, "tokenizer_sha256": hashlib.sha256(tokenizer.read_bytes()).hexdigest()}
    (root / "manifest.json").write_text(json.dumps(manifest))
    message = {
        "length": "a block of shape (8, 16) instead of rows of 8 tokens",
        "vocabulary": "in a vocabulary of 10",
    }[what]
    assert message in failure(opened(config(root, num_workers=0)))


AT_EXIT = """
import atexit, gc, sys
from pathlib import Path
freed = []
# Registered first, so that it runs when the data set has freed its names: another process takes them.
atexit.register(lambda: [Path("/dev/shm", name).touch(exist_ok=False) for name in freed])
from cram_composer.data.loading.open_dataset import open_block_dataset
from cram_composer.data.loading.mixture import SelectedStream
from cram_composer.data.loading.prepare import PreparedDataset
from cram_composer.data.manifest import load_manifest
root = Path(sys.argv[1])
blocks = open_block_dataset(PreparedDataset(root, load_manifest(root)), [SelectedStream("train")])
prefix = blocks._locals_shm.shm.name.removesuffix("locals")
freed += [path.name for path in Path("/dev/shm").glob(f"{prefix}*")]
print(*freed)
# Like a trainer, a reference cycle that nothing uses: Python collects it once more after its exit handlers.
gc.disable()
cycle = [blocks]
cycle.append(cycle)
del blocks, cycle
"""


def test_names_that_another_process_takes_at_exit_are_left_to_it(tmp_path: Path):
    root = write_data_set(tmp_path / "data")
    done = subprocess.run([sys.executable, "-c", AT_EXIT, str(root)], capture_output=True, text=True, check=True)
    taken = [Path("/dev/shm", name) for name in done.stdout.split()]
    assert len(taken) >= 6 and done.stderr == ""
    for path in taken:
        path.unlink()
