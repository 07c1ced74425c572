"""The manifest of a finished data set, and verification of its shards."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from typing_extensions import TypedDict

from cram_composer.data.manifest_checks import HELD_OUT, manifest_problem
from cram_composer.data.tokenizer_files import id_count
from cram_composer.errors import CramError
from cram_composer.storage.files import read_checked
from cram_composer.storage.paths import plain_name, resolve_inside

MANIFEST = "manifest.json"
EXAMPLES = "examples.json"
TOKENIZER = "tokenizer/tokenizer.json"
COLUMN = "rows"  # column of the MDS records; holds a block of rows
FORMAT_VERSION = 2


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


class _Optional(TypedDict, total=False):
    file_sha256: dict[str, str]  # of every index.json and tokenizer file, by name; absent in older data sets
    language: str  # code of the text's language, if the build's configuration states it


class Manifest(_Optional):
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
    splits: dict[str, SplitCounts]  # streams, "validation" and "held-out-NAME"
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
    if (problem := manifest_problem(manifest)) is not None:
        raise _damage_error(path, problem)
    return manifest


def held_out_splits(manifest: Manifest) -> list[str]:
    """Return the splits that are not for training: validation, then further held-out sets."""
    return ["validation", *(split for split in manifest["splits"] if split.startswith(HELD_OUT))]


def summarize(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest without files and the build's configuration, for run records."""
    short = {key: value for key, value in manifest.items() if key not in ("config", "file_sha256")}
    short["sources"] = [{k: v for k, v in source.items() if k != "files"} for source in manifest["sources"]]
    return short


def fingerprint(summary: Mapping[str, Any]) -> str:
    """Hash a manifest or its summary, apart from the versions of the libraries that wrote it."""
    left_out = ("config", "created_with", "file_sha256", "language", "sources")  # a record has no file_sha256
    content = {key: value for key, value in summary.items() if key not in left_out}
    content["sources"] = [{k: v for k, v in source.items() if k != "files"} for source in summary["sources"]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def verify_dataset(root: Path, manifest: Manifest, full: bool = True) -> None:
    """Check the tokenizer and every shard against the manifest and index.json: presence, size and, if `full`, hash.

    Raises CramError for the first file that differs.
    """
    for path in (root / "tokenizer").rglob("*"):  # all of it is copied into run folders and exports
        resolve_inside(root, path.relative_to(root).as_posix(), str(root))
    check_tokenizer(root / TOKENIZER, manifest)
    for name in manifest.get("file_sha256", {}):
        if name.startswith("tokenizer/"):
            check_hash(root, name, manifest)
    for split in manifest["splits"]:
        for shard in read_index(root, split, manifest):
            verify_shard(root / split / shard.stored.name, shard.stored, full)


def check_tokenizer(path: Path, manifest: Manifest) -> None:
    """Check the hash and the number of entries of a tokenizer.json against the manifest. Raises CramError."""
    from tokenizers import Tokenizer

    if not path.is_file():
        raise _damage_error(path, "missing")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest["tokenizer_sha256"]:
        raise _damage_error(path, "not the tokenizer that the data set was made with")
    try:
        ids = id_count(Tokenizer.from_buffer(content))
    except Exception as error:  # the library raises plain exceptions
        raise _damage_error(path, f"not a tokenizer ({' '.join(str(error).split())})") from None
    if ids != manifest["vocab_size"]:
        raise _damage_error(path, f"has {ids} ids, but vocab_size in {MANIFEST} is {manifest['vocab_size']}")


def check_hash(root: Path, name: str, manifest: Manifest) -> None:
    """Check an index or a tokenizer file against its hash in the manifest, if it has hashes. Raises CramError."""
    if "file_sha256" not in manifest:
        return
    path = resolve_inside(root, name, str(root / MANIFEST))
    if not path.is_file():
        raise _damage_error(path, "missing")
    if hashlib.sha256(path.read_bytes()).hexdigest() != manifest["file_sha256"].get(name):
        raise _damage_error(path, f"its hash differs from the one in {MANIFEST}")


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
    """Read the shards of a split from its index.json.

    Raises:
        CramError: the index is missing, contradicts the manifest, or names files outside the data set.
    """
    return [shard for shard, _ in read_index_entries(root, split, manifest)]


def read_index_entries(root: Path, split: str, manifest: Manifest) -> list[tuple[Shard, dict[str, Any]]]:
    """Read the shards of a split with Streaming's own entry of each, as `read_index`."""
    index = root / split / "index.json"
    try:
        listed = json.loads(index.read_bytes())["shards"]
        records = sum(shard["samples"] for shard in listed)
        shards = [(_read_shard(root, split, shard, manifest), shard) for shard in listed]
    except FileNotFoundError:
        raise _damage_error(index, "missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, _ForeignShardError) else type(error).__name__
        raise _damage_error(index, f"not a shard index ({reason})") from None
    counts = manifest["splits"][split]
    if records != counts["blocks"]:
        raise _damage_error(index, f"lists {records} records, the manifest {counts['blocks']}")
    if (stored := sum(shard.stored.bytes for shard, _ in shards)) != counts["bytes"]:
        raise _damage_error(index, f"lists {stored} bytes, the manifest {counts['bytes']}")
    check_hash(root, f"{split}/index.json", manifest)
    return shards


class _ForeignShardError(ValueError):
    """A shard of another kind than a build writes."""


def _read_shard(root: Path, split: str, shard: dict[str, Any], manifest: Manifest) -> Shard:
    # Streaming also knows columns that run code when they are read.
    compression = None if manifest["compression"] == "none" else manifest["compression"]
    expected = {"format": "mds", "column_names": [COLUMN], "compression": compression}
    for key, value in expected.items():
        if shard[key] != value:
            raise _ForeignShardError(f"{key} is {shard[key]!r} instead of {value!r}")
    (encoding,) = shard["column_encodings"]
    if not re.fullmatch(rf"ndarray:{manifest['dtype']}(:[\d,]+)?", encoding):
        raise _ForeignShardError(f"column_encodings is {[encoding]} instead of {['ndarray:' + manifest['dtype']]}")
    raw = _shard_file(root, split, shard["raw_data"])
    return Shard(_shard_file(root, split, stored_entry(shard)) if shard["zip_data"] else raw, raw)


def stored_entry(shard: dict[str, Any]) -> dict[str, Any]:
    """Return the stored file's entry of a shard in an index: the compressed file if there is one."""
    return shard["zip_data"] or shard["raw_data"]


def _shard_file(root: Path, split: str, info: dict[str, Any]) -> ShardFile:
    index = root / split / "index.json"
    name = plain_name(info["basename"], str(index))
    resolve_inside(root, f"{split}/{name}", str(index))
    if not isinstance(info["bytes"], int) or info["bytes"] < 0:
        raise _ForeignShardError(f"{name} has {info['bytes']!r} bytes")
    return ShardFile(name, info["bytes"], info["hashes"]["xxh64"])


def file_xxh64(path: Path) -> str:
    """Return the xxh64 hash of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, xxhash.xxh64).hexdigest()  # type: ignore[arg-type]


def verify_shard(path: Path, expected: ShardFile, full: bool = True) -> None:
    """Check presence, size and, if `full`, hash of a shard's file. Raises CramError."""
    if not path.is_file():
        raise _damage_error(path, "missing")
    if path.stat().st_size != expected.bytes:
        raise _damage_error(path, f"{path.stat().st_size} bytes instead of {expected.bytes}")
    if full and file_xxh64(path) != expected.xxh64:
        raise _damage_error(path, "its xxh64 hash differs from the one in index.json")


def _damage_error(path: Path, cause: str) -> CramError:
    return CramError(f"{path}: {cause}; the data set is damaged, copy or build it again")
