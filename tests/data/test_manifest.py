from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cram_composer.data.manifest import SplitCounts, load_manifest, read_index, summarize, verify_dataset
from cram_composer.errors import CramError
from tests.data.data_sets import flip_a_bit, write_data_set

TRAIN, VALIDATION = "train/00000/shard.00000.mds", "validation/00000/shard.00000.mds"


@pytest.fixture
def root(tiny_data, tmp_path) -> Path:
    """Return a copy of a data set, to be damaged."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


def drop_shard_from_index(root: Path) -> None:
    path = root / "train" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shards": []}))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit": (
        lambda root: flip_a_bit(root / TRAIN),
        f"{TRAIN}: its xxh64 hash differs",
    ),
    "truncated": (
        lambda root: (root / VALIDATION).write_bytes(b"x"),
        "mds: 1 bytes instead of",
    ),
    "missing shard": (
        lambda root: (root / TRAIN).unlink(),
        f"{TRAIN}: missing",
    ),
    "missing index": (lambda root: (root / "train/index.json").unlink(), "train/index.json: missing"),
    "broken index": (lambda root: (root / "train/index.json").write_text("{}"), "index.json: not a shard index"),
    "short index": (drop_shard_from_index, "index.json: lists 0 records, the manifest"),
    "missing tokenizer": (lambda root: (root / "tokenizer/tokenizer.json").unlink(), "tokenizer.json: missing"),
    "other tokenizer": (
        lambda root: flip_a_bit(root / "tokenizer/tokenizer.json"),
        "not the tokenizer that the data set",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_found_and_named(root, case):
    damage, message = DAMAGE[case]
    manifest = load_manifest(root)
    verify_dataset(root, manifest)
    damage(root)
    with pytest.raises(CramError, match=message) as error:
        verify_dataset(root, manifest)
    assert "\n" not in str(error.value)


def test_quick_check_compares_sizes_only(root):
    manifest = load_manifest(root)
    flip_a_bit(root / TRAIN)
    verify_dataset(root, manifest, full=False)
    (root / TRAIN).write_bytes(b"x")
    with pytest.raises(CramError, match="1 bytes instead of"):
        verify_dataset(root, manifest, full=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not a finished data set .no manifest.json.; build it with: cram data build"),
        ("{", "manifest.json: damaged .not valid JSON: .*; copy or build"),
        ("", "manifest.json: damaged .empty.; copy or build"),
        ("[" * 100_000, "manifest.json: damaged .not valid JSON: nested too deeply"),
        ("[]", "manifest.json: damaged .is foreign.; copy or build"),
        ('{"format_version": 1}', "format version 1, but 2 is needed"),
        ('{"format_version": 2, "name": "x"}', "damaged .created_with is missing.; copy or build"),
        ({"splits": {"validation": 3}}, "damaged .splits.validation has a wrong type."),
        ({"streams": ["train-web"]}, "train-web.* must be the splits"),
        ({"sequence_length": "128"}, "damaged .sequence_length has a wrong type."),
    ],
)
def test_manifest_that_cannot_be_used(root, tmp_path, content, message):
    if isinstance(content, dict):
        content = json.dumps(load_manifest(root) | content)
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(CramError, match=message):
        load_manifest(tmp_path)


def test_summarize_drops_files_and_configuration(root):
    short = summarize(load_manifest(root))
    assert "config" not in short
    assert "files" not in short["sources"][0]
    assert short["splits"] == load_manifest(root)["splits"]


def test_compressed_files_of_every_stream_are_checked(tmp_path):
    root = write_data_set(tmp_path / "data", {"train-web": 64, "train-wiki": 64}, compression="zstd")
    manifest = load_manifest(root)
    verify_dataset(root, manifest)
    (shard,) = read_index(root, "train-wiki", manifest)[:1]
    assert shard.stored.name.endswith(".zstd") and shard.raw.name.endswith(".mds")
    flip_a_bit(root / "train-wiki" / shard.stored.name)
    with pytest.raises(CramError, match="train-wiki/00000/shard.00000.mds.zstd: its xxh64 hash differs"):
        verify_dataset(root, manifest)


def edit(root: Path, **changes: object) -> None:
    path = root / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (manifest | changes).items() if value is not None}))


def edit_index(root: Path, **changes: object) -> None:
    path = root / "train" / "index.json"
    index = json.loads(path.read_text())
    index["shards"][0] |= changes
    path.write_text(json.dumps(index))


TOKENS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 99999}
COUNTS = dict.fromkeys(SplitCounts.__required_keys__, 1) | {"rows": 64, "tokens": 64 * 16, "blocks": 8}
FOREIGN: dict[str, tuple[dict[str, object], str]] = {
    "vocabulary": ({"vocab_size": 10}, "tokenizer.json: has 200 ids, but vocab_size in manifest.json is 10"),
    "vocabulary of nothing": ({"vocab_size": 0}, "vocab_size: must be a whole number >= 1, got 0"),
    "vocabulary as text": ({"vocab_size": "200"}, "damaged .vocab_size has a wrong type."),
    "vocabulary beyond the dtype": ({"vocab_size": 70000}, "dtype: 'uint16' cannot hold the ids of 70000 tokens"),
    "mask": ({"special_tokens": TOKENS}, r"special_tokens.mask: must be an id below vocab_size .200., got 99999"),
    "no mask": ({"special_tokens": {"pad": 0}}, "special_tokens.* must be an id below vocab_size .200., got None"),
    "length": ({"sequence_length": 8}, "has 1024 tokens, but 64 rows of 8 tokens"),
    "split": ({"splits": {"train": COUNTS}}, "streams: .* and validation must be the splits"),
    "counts": ({"splits": {"train": COUNTS | {"rows": 0}, "validation": COUNTS}}, "train.rows: must be a whole"),
    "splits as a list": ({"splits": []}, "manifest.json: "),
    "dtype": ({"dtype": "object"}, "dtype: 'object' cannot hold"),
    "compression": ({"compression": "br"}, "compression: must be none or zstd, got 'br'"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_manifest_that_does_not_fit_is_refused(tmp_path, case):
    root = write_data_set(tmp_path / "data", 64)
    changes, message = FOREIGN[case]
    verify_dataset(root, load_manifest(root))
    edit(root, **changes)
    with pytest.raises(CramError, match=message) as error:
        verify_dataset(root, load_manifest(root))
    assert "\n" not in str(error.value) and str(error.value).endswith("again")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"column_encodings": ["pkl"]}, r"column_encodings is \['pkl'\] instead of \['ndarray:uint16'\]"),
        ({"column_names": ["text"]}, "column_names is"),
        ({"format": "json"}, "format is 'json' instead of 'mds'"),
        ({"compression": "br"}, "compression is 'br' instead of None"),
        ({"raw_data": {"basename": "a", "bytes": -1, "hashes": {"xxh64": ""}}}, "a has -1 bytes"),
        ({"raw_data": {"basename": "a", "bytes": 1, "hashes": {"xxh64": ""}}}, "bytes, the manifest "),
        ({"raw_data": []}, "not a shard index"),
    ],
)
def test_index_of_another_kind_is_refused(tmp_path, changes, message):
    root = write_data_set(tmp_path / "data", 64)
    edit_index(root, **changes)
    with pytest.raises(CramError, match=message):
        verify_dataset(root, load_manifest(root))


@pytest.mark.parametrize("name", ["train/index.json", "tokenizer/tokenizer_config.json"])
def test_manifest_has_the_hashes_of_indexes_and_tokenizer(root, name):
    manifest = load_manifest(root)
    assert {"train/index.json", "validation/index.json", "tokenizer/tokenizer.json", name} <= set(
        manifest["file_sha256"]
    )
    (root / name).write_text((root / name).read_text() + " ")
    with pytest.raises(CramError, match=f"{name}: its hash differs from the one in manifest.json"):
        verify_dataset(root, manifest)
    edit(root, file_sha256=None)  # as an older build writes it
    verify_dataset(root, load_manifest(root))
