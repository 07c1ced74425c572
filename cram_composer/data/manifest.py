"""The manifest of a finished data set, and verification of its shards."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from typing_extensions import TypedDict

from cram_composer.errors import CramError
from cram_composer.storage.files import read_checked

MANIFEST = "manifest.json"
EXAMPLES = "examples.json"
COLUMN = "rows"  # column of the MDS records; holds a block of rows
FORMAT_VERSION = 2
_READ_BYTES = 8 << 20


class SplitCounts(TypedDict):
    """Counts of one split. `tokens` is rows x sequence_length, including `unk_tokens` [UNK] and `padding_tokens` [PAD].

    `dropped_tokens` did not fill a row or a block. `bytes` is the stored size of all shards.
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
    """manifest.json. It contains no time, host or output path: the same input gives the same bytes."""

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
    packing: str  # PackingConfig.kind
    ordering: str  # of the rows of the train streams
    compression: str  # of the shards: none or zstd
    partitions: int
    streams: list[str]  # the splits to train on: ["train"], or ["train-NAME", ...]
    splits: dict[str, SplitCounts]  # streams and "validation"
    stages: list[dict[str, Any]]  # StageCounts of every enabled stage, in order
    sources: list[dict[str, Any]]
    unigram_validation_nats: float
    config: dict[str, Any]
    config_hash: str


def load_manifest(root: Path) -> Manifest:
    """Load the manifest of a data set. Raises CramError if it is unfinished, damaged or of another format."""
    path = root / MANIFEST
    if not path.is_file():
        raise CramError(f"{root}: not a finished data set (no {MANIFEST}); build it with: cram data build YAML")
    remedy = "copy or build the data set again"
    found: dict[str, Any] = read_checked(path, dict, remedy)
    version = found.get("format_version")
    if version != FORMAT_VERSION:
        raise CramError(f"{path}: format version {version}, but {FORMAT_VERSION} is needed; build the data set again")
    manifest = read_checked(path, Manifest, remedy)
    for split in [*manifest["streams"], "validation"]:
        if split not in manifest["splits"]:
            raise CramError(f"{path}: damaged (splits.{split} is missing); {remedy}")
    return manifest


def summarize(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest without file lists and the build's configuration, for run records."""
    short = {key: value for key, value in manifest.items() if key != "config"}
    short["sources"] = [{k: v for k, v in source.items() if k != "files"} for source in manifest["sources"]]
    return short


def verify_dataset(root: Path, manifest: Manifest, full: bool = True) -> None:
    """Check the tokenizer and every shard against the manifest and index.json: presence, size and, if `full`, hash.

    Raises CramError for the first file that differs.
    """
    tokenizer = root / "tokenizer" / "tokenizer.json"
    if not tokenizer.is_file():
        raise _damage_error(tokenizer, "missing")
    if hashlib.sha256(tokenizer.read_bytes()).hexdigest() != manifest["tokenizer_sha256"]:
        raise _damage_error(tokenizer, "not the tokenizer that the data set was made with")
    for split in manifest["splits"]:
        for shard in read_index(root, split, manifest):
            _verify_shard(root / split / shard.stored.name, shard.stored, full)


@dataclass(frozen=True)
class ShardFile:
    """A file of a shard: its name below the split's folder, its size and its hash."""

    name: str
    bytes: int
    xxh64: str


@dataclass(frozen=True)
class Shard:
    """A shard as stored and as read; both are the same file without compression."""

    stored: ShardFile
    raw: ShardFile


def read_index(root: Path, split: str, manifest: Manifest) -> list[Shard]:
    """Read the shards of a split from its index.json. Raises CramError if it is missing or contradicts the manifest."""
    index = root / split / "index.json"
    try:
        listed = json.loads(index.read_bytes())["shards"]
        records = sum(shard["samples"] for shard in listed)
        shards = []
        for shard in listed:
            raw = _shard_file(shard["raw_data"])
            shards.append(Shard(_shard_file(stored_entry(shard)) if shard["zip_data"] else raw, raw))
    except FileNotFoundError:
        raise _damage_error(index, "missing") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damage_error(index, f"not a shard index ({type(error).__name__})") from None
    if records != manifest["splits"][split]["blocks"]:
        raise _damage_error(index, f"lists {records} records, the manifest {manifest['splits'][split]['blocks']}")
    return shards


def stored_entry(shard: dict[str, Any]) -> dict[str, Any]:
    """Return the stored file's entry of a shard in an index: the compressed file if there is one."""
    return shard["zip_data"] or shard["raw_data"]


def _shard_file(info: dict[str, Any]) -> ShardFile:
    return ShardFile(info["basename"], int(info["bytes"]), info["hashes"]["xxh64"])


def file_xxh64(path: Path) -> str:
    """Return the xxh64 hash of a file in hexadecimal."""
    found = xxhash.xxh64()
    with open(path, "rb") as file:
        while chunk := file.read(_READ_BYTES):
            found.update(chunk)
    return found.hexdigest()


def _verify_shard(path: Path, expected: ShardFile, full: bool) -> None:
    if not path.is_file():
        raise _damage_error(path, "missing")
    if path.stat().st_size != expected.bytes:
        raise _damage_error(path, f"{path.stat().st_size} bytes instead of {expected.bytes}")
    if full and file_xxh64(path) != expected.xxh64:
        raise _damage_error(path, "its xxh64 hash differs from the one in index.json")


def _damage_error(path: Path, cause: str) -> CramError:
    return CramError(f"{path}: {cause}; the data set is damaged, copy or build it again")
