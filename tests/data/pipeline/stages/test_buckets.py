from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
import pytest

from cram_composer.data.pipeline.stages.buckets import (
    BucketWriter,
    divide_into_shares,
    earlier_pairs,
    find_later_owners,
)
from cram_composer.errors import CramError


def write(folder, name, records, count=4, memory_bytes=1 << 20, at_a_time=7):
    writer = BucketWriter(folder, name, count, memory_bytes)
    array = np.array(records, np.uint64).reshape(-1, 2)
    for start in range(0, len(array), at_a_time):
        writer.add(array[start : start + at_a_time, 0], array[start : start + at_a_time, 1])
    writer.close()
    return writer.paths


def random_records(seed, count=500, keys=200, owners=1000):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, keys, count), rng.integers(0, owners, count)], axis=1).tolist()


@pytest.mark.parametrize("memory_bytes", [1, 48 * 10, 1 << 20])
@pytest.mark.parametrize("count", [1, 3, 50])
def test_every_record_is_in_its_bucket_once(tmp_path, memory_bytes, count):
    records = [[key * 2**55, owner] for key, owner in random_records(0)] + [[2**64 - 1, 2**64 - 1]]
    paths = write(tmp_path, "keys", records, count, memory_bytes)
    assert [path.name for path in paths] == [f"keys.{bucket:05d}" for bucket in range(count)]
    found = []
    for bucket, path in enumerate(paths):
        part = np.fromfile(path, "<u8").reshape(-1, 2).tolist()
        assert all(key % count == bucket for key, _ in part)
        found += part
    assert sorted(found) == sorted(records)
    if count == 1:
        assert found == records  # in order


def test_interrupted_attempt_leaves_nothing(tmp_path):
    first = BucketWriter(tmp_path, "keys", 2, 1)
    first.add(np.arange(10, dtype=np.uint64), np.arange(10, dtype=np.uint64))
    other = write(tmp_path, "other", [[0, 5]], 2)
    paths = write(tmp_path, "keys", [[1, 1]], 2)
    assert [path.stat().st_size for path in paths] == [0, 16]
    assert other[0].stat().st_size == 16


def test_later_owners(tmp_path):
    partitions = [random_records(seed) for seed in range(3)]
    files = [write(tmp_path, str(p), records) for p, records in enumerate(partitions)]
    owners = defaultdict(set)
    for key, owner in itertools.chain(*partitions):
        owners[key].add(owner)
    for bucket in range(4):
        expected = {owner for key, group in owners.items() if key % 4 == bucket for owner in group - {min(group)}}
        assert find_later_owners([paths[bucket] for paths in files]).tolist() == sorted(expected)


@pytest.mark.parametrize("candidates", [1, 2, 3, 100])
@pytest.mark.parametrize("apart", [1, 50])
def test_earlier_pairs(tmp_path, candidates, apart):
    rng = np.random.default_rng(0)
    positions = rng.permutation(2000)[:900]  # every position has one key
    records = np.stack([rng.integers(0, 200, 900), positions], axis=1)
    files = [write(tmp_path, str(p), part.tolist()) for p, part in enumerate(np.array_split(records, 3))]
    groups = defaultdict(list)
    for key, position in sorted(records.tolist()):
        groups[key].append(position)
    for bucket in range(4):
        expected = []
        for key, group in groups.items():
            for i, position in enumerate(group) if key % 4 == bucket else ():
                nearest = group[max(i - candidates + 1, 0) : i]
                chosen = {*group[:1], *nearest} - {position}
                expected += [(position, found) for found in chosen if position - found >= apart]
        later, earlier = earlier_pairs([paths[bucket] for paths in files], candidates, apart)
        assert list(zip(later.tolist(), earlier.tolist(), strict=True)) == sorted(expected)
        assert later.dtype == earlier.dtype == np.uint64


def test_large_bucket_is_processed_in_shares(tmp_path):
    random = np.random.default_rng(0)
    # Keys are hashes, so all of their bits are random.
    hashes = random.integers(0, 1 << 63, 200, np.uint64)
    keys, owners = hashes[random.integers(0, 200, 3000)], random.permutation(3000).astype(np.uint64)
    writer = BucketWriter(tmp_path, "x", 1, 1 << 20)
    writer.add(keys, owners)
    writer.close()
    parts = divide_into_shares(writer.paths, 10_000)
    assert len(parts) == 3000 * 16 // 10_000 + 1
    found = [find_later_owners(writer.paths, share) for share in parts]
    assert all(map(len, found))
    assert sorted(np.concatenate(found)) == find_later_owners(writer.paths).tolist()
    in_shares = [
        pair for share in parts for pair in zip(*map(list, earlier_pairs(writer.paths, share=share)), strict=True)
    ]
    assert sorted(in_shares) == sorted(zip(*map(list, earlier_pairs(writer.paths)), strict=True))


def test_no_records(tmp_path):
    [path] = write(tmp_path, "keys", [], 1)
    assert find_later_owners([path]).tolist() == find_later_owners([]).tolist() == []
    assert [array.tolist() for array in earlier_pairs([path, path])] == [[], []]


def test_missing_and_truncated_files_are_reported(tmp_path):
    [path] = write(tmp_path, "keys", [[1, 2], [3, 4]], 1)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CramError, match=r"keys\.00000: truncated"):
        find_later_owners([path])
    path.unlink()
    with pytest.raises(CramError, match=r"keys\.00000: missing"):
        earlier_pairs([path])
