"""The manifest of a finished data set: what is in it, and whether the shards on disk are the ones it was made with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import xxhash

from cram_composer.errors import CramError
from cram_composer.storage.files import read_json

MANIFEST = "manifest.json"
EXAMPLES = "examples.json"
COLUMN = "rows"  # of the MDS records: a block of rows
FORMAT_VERSION = 2
_READ_BYTES = 8 << 20


class SplitCounts(TypedDict):
    """One split. `tokens` is rows x sequence_length; `unk_tokens` of them are [UNK], `padding_tokens` [PAD].

    `dropped_tokens` filled no row or no block. `bytes` is the size of all shards as stored.
    """

    documents: int
    characters: int
    rows: int
    tokens: int
    unk_tokens: int
    dropped_tokens: int
    padding_tokens: int
    blocks: int
    bytes: int


class Manifest(TypedDict):
    """manifest.json. It holds no time, host or output path: the same input makes the same bytes."""

    format_version: int
    name: str
    created_with: dict[str, str]
    seed: int
    sequence_length: int
    block_rows: int
    dtype: str
    vocab_size: int
    special_tokens: dict[str, int]
    tokenizer_sha256: str
    packing: str  # config.data_schema.PackingConfig.kind
    ordering: str  # of the rows of the train streams
    compression: str  # of the shards: none or zstd
    partitions: int
    streams: list[str]  # the splits to train on: ["train"], or ["train-NAME", ...]
    splits: dict[str, SplitCounts]  # those and "validation"
    stages: list[dict[str, Any]]  # data.stages.counts.StageCounts of every stage that is on, in order
    sources: list[dict[str, Any]]
    unigram_validation_nats: float
    config: dict[str, Any]
    config_hash: str


def load_manifest(root: Path) -> Manifest:
    """The manifest of the data set at `root`. Raises CramError if it is not a finished one, or of another format."""
    path = root / MANIFEST
    if not path.is_file():
        raise CramError(f"{root}: not a finished data set (no {MANIFEST}); build it with: cram data build YAML")
    try:
        manifest = read_json(path)
    except (OSError, ValueError) as error:
        raise CramError(f"{path}: cannot be read: {error}; build the data set again") from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise CramError(f"{path}: format version {version}, but {FORMAT_VERSION} is needed; build the data set again")
    missing = Manifest.__required_keys__ - manifest.keys()
    if missing:
        raise CramError(f"{path}: incomplete (no {', '.join(sorted(missing))}); build the data set again")
    return manifest


def summary(manifest: Manifest) -> dict[str, Any]:
    """The manifest without its lists of files and the build's configuration: what a run record keeps."""
    short = {key: value for key, value in manifest.items() if key != "config"}
    short["sources"] = [{k: v for k, v in source.items() if k != "files"} for source in manifest["sources"]]
    return short


def verify(root: Path, manifest: Manifest, full: bool = True) -> None:
    """Check the tokenizer and every shard against the manifest and index.json: presence, size and, if `full`, hash.

    Raises CramError naming the first file that is wrong and how.
    """
    tokenizer = root / "tokenizer" / "tokenizer.json"
    if not tokenizer.is_file():
        raise _damaged(tokenizer, "missing")
    if hashlib.sha256(tokenizer.read_bytes()).hexdigest() != manifest["tokenizer_sha256"]:
        raise _damaged(tokenizer, "not the tokenizer that the data set was made with")
    for split in manifest["splits"]:
        for shard in read_index(root, split, manifest):
            _verify_shard(root / split / shard.stored.name, shard.stored, full)


@dataclass(frozen=True)
class ShardFile:
    """A file of a shard: its name under the split's folder, its size, its hash."""

    name: str
    bytes: int
    xxh64: str


@dataclass(frozen=True)
class Shard:
    """A shard as it is stored and as it is read; these are the same file where it is not compressed."""

    stored: ShardFile
    raw: ShardFile


def read_index(root: Path, split: str, manifest: Manifest) -> list[Shard]:
    """The shards of a split by its index.json. Raises CramError if there is none, or it disagrees with the manifest."""
    index = root / split / "index.json"
    try:
        listed = json.loads(index.read_bytes())["shards"]
        records = sum(shard["samples"] for shard in listed)
        shards = []
        for shard in listed:
            raw = _shard_file(shard["raw_data"])
            shards.append(Shard(_shard_file(stored_file(shard)) if shard["zip_data"] else raw, raw))
    except FileNotFoundError:
        raise _damaged(index, "missing") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(index, f"not a shard index ({type(error).__name__})") from None
    if records != manifest["splits"][split]["blocks"]:
        raise _damaged(index, f"lists {records} records, the manifest {manifest['splits'][split]['blocks']}")
    return shards


def stored_file(shard: dict[str, Any]) -> dict[str, Any]:
    """The entry of an index's shard that tells of the file that is stored: the compressed one, if there is one."""
    return shard["zip_data"] or shard["raw_data"]


def _shard_file(info: dict[str, Any]) -> ShardFile:
    return ShardFile(info["basename"], int(info["bytes"]), info["hashes"]["xxh64"])


def file_xxh64(path: Path) -> str:
    """The xxh64 of a file, in hexadecimal."""
    found = xxhash.xxh64()
    with open(path, "rb") as file:
        while chunk := file.read(_READ_BYTES):
            found.update(chunk)
    return found.hexdigest()


def _verify_shard(path: Path, expected: ShardFile, full: bool) -> None:
    if not path.is_file():
        raise _damaged(path, "missing")
    if path.stat().st_size != expected.bytes:
        raise _damaged(path, f"{path.stat().st_size} bytes instead of {expected.bytes}")
    if full and file_xxh64(path) != expected.xxh64:
        raise _damaged(path, "its xxh64 hash differs from the one in index.json")


def _damaged(path: Path, cause: str) -> CramError:
    return CramError(f"{path}: {cause}; the data set is damaged, copy or build it again")
