"""The manifest of a finished data set: what is in it, and whether the shards on disk are the ones it was made with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypedDict

import xxhash

from cram_composer.errors import CramError
from cram_composer.files import read_json

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
_READ_BYTES = 8 << 20


class SplitCounts(TypedDict):
    """One split. `tokens` is rows x sequence_length; `unk_tokens` of them are [UNK]; `dropped_tokens` filled no row."""

    documents: int
    characters: int
    rows: int
    tokens: int
    unk_tokens: int
    dropped_tokens: int
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
    splits: dict[str, SplitCounts]
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
    for split, counts in manifest["splits"].items():
        index = root / split / "index.json"
        try:
            listed = json.loads(index.read_bytes())["shards"]
            records = sum(shard["samples"] for shard in listed)
            files = [shard["raw_data"] for shard in listed]
            shards = [(file["basename"], file["bytes"], file["hashes"]["xxh64"]) for file in files]
        except FileNotFoundError:
            raise _damaged(index, "missing") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(index, f"not a shard index ({type(error).__name__})") from None
        if records != counts["blocks"]:
            raise _damaged(index, f"lists {records} records, the manifest {counts['blocks']}")
        for name, size, digest in shards:
            _verify_shard(root / split / name, size, digest if full else None)


def _verify_shard(path: Path, size: int, digest: str | None) -> None:
    if not path.is_file():
        raise _damaged(path, "missing")
    if path.stat().st_size != size:
        raise _damaged(path, f"{path.stat().st_size} bytes instead of {size}")
    if digest is not None:
        found = xxhash.xxh64()
        with open(path, "rb") as file:
            while chunk := file.read(_READ_BYTES):
                found.update(chunk)
        if found.hexdigest() != digest:
            raise _damaged(path, "its xxh64 hash differs from the one in index.json")


def _damaged(path: Path, cause: str) -> CramError:
    return CramError(f"{path}: {cause}; the data set is damaged, copy or build it again")
