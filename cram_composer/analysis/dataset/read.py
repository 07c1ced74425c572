"""Read the manifest, examples and a few rows of a finished data set, local or in object storage."""

from __future__ import annotations

import hashlib
import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cram_composer.config.paths import expand
from cram_composer.data.manifest import (
    COLUMN,
    EXAMPLES,
    MANIFEST,
    Manifest,
    Shard,
    file_xxh64,
    load_manifest,
    read_index_entries,
)
from cram_composer.data.unpack import UnpackError, unpack_zstd
from cram_composer.errors import CramError
from cram_composer.storage.client import METADATA_BYTES, Storage, is_remote
from cram_composer.storage.files import read_json

ROWS_PER_SPLIT = 4


@dataclass(frozen=True)
class SampleRow:
    """A row as text: its documents in order; the last one may continue in another row."""

    block: int
    row: int  # in the block
    documents: list[str]
    continues: bool
    padding: int  # [PAD] tokens at the end


@dataclass(frozen=True)
class DataSet:
    """A data set: its location, manifest, examples.json (None if absent) and sampled rows."""

    uri: str
    manifest: Manifest
    examples: dict[str, Any] | None
    tokenizer_kind: str
    rows: dict[str, list[SampleRow]]  # of every split


class _Files:
    """Files of the data set by name, downloaded to `scratch` on first use if remote."""

    def __init__(self, uri: str, scratch: Path) -> None:
        self.scratch = scratch
        self.remote = is_remote(uri)
        if self.remote:
            self._storage = Storage(uri)
        self.root = scratch / "remote" if self.remote else expand(uri)
        self.uri = self._storage.uri if self.remote else str(self.root)

    def has(self, name: str) -> bool:
        return self._storage.size(name) is not None if self.remote else (self.root / name).is_file()

    def path(self, name: str, limit: int = METADATA_BYTES) -> Path:
        path = self.root / name
        if self.remote and not path.exists():
            self._storage.download(name, path, limit)
        return path


def load_data_set(uri: str) -> DataSet:
    """Load the data set at `uri`, a folder or a prefix in object storage.

    From object storage only the smallest shard of every split is downloaded, and deleted afterwards.

    Raises:
        CramError: not a finished data set of this format, a missing or damaged file, or no access.
    """
    with tempfile.TemporaryDirectory(prefix="cram-inspect-") as scratch:
        files = _Files(uri, Path(scratch))
        if not files.has(MANIFEST):
            raise CramError(
                f"{files.uri}: not a finished data set (no {MANIFEST}); build it with: cram data build YAML"
            )
        try:
            files.path(MANIFEST)
            manifest = load_manifest(files.root)
            tokenizer = _tokenizer(files, manifest)
            rows = {split: list(_sample_rows(files, split, manifest, tokenizer)) for split in manifest["splits"]}
            examples = read_json(files.path(EXAMPLES)) if files.has(EXAMPLES) else None
        except CramError as error:
            if not files.remote or str(files.root) not in str(error):
                raise
            # The user knows the file by its URI, not by the temporary path.
            raise CramError(str(error).replace(str(files.root), files.uri)) from None
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            detail = " ".join(str(error).split()) or type(error).__name__
            raise CramError(f"{files.uri}: cannot be read: {detail}; copy the data set again or rebuild it") from error
        return DataSet(files.uri, manifest, examples, type(tokenizer.model).__name__, rows)


def _tokenizer(files: _Files, manifest: Manifest) -> Tokenizer:
    content = files.path("tokenizer/tokenizer.json").read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest["tokenizer_sha256"]:
        raise CramError(
            f"{files.uri}/tokenizer/tokenizer.json: not the tokenizer that the data set was built with; "
            "copy the data set again or rebuild it"
        )
    return Tokenizer.from_buffer(content)


def _sample_rows(files: _Files, split: str, manifest: Manifest, tokenizer: Tokenizer) -> Iterator[SampleRow]:
    """Rows spread evenly over the split, or over its smallest shard if shards are downloaded."""
    files.path(f"{split}/index.json")
    shards = read_index_entries(files.root, split, manifest)
    ends = list(accumulate(entry["samples"] for _, entry in shards))
    first, end = 0, ends[-1]
    if files.remote:
        smallest = min(range(len(shards)), key=lambda i: (shards[i][0].stored.bytes, i))
        first, end = ends[smallest] - shards[smallest][1]["samples"], ends[smallest]
    for number in range(ROWS_PER_SPLIT):
        place = (end - first) * (number + 0.5) / ROWS_PER_SPLIT
        block = first + int(place)
        shard = bisect_right(ends, block)
        rows = _read_block(files, split, *shards[shard], block - ends[shard] + shards[shard][1]["samples"])
        row = int((place - int(place)) * len(rows))
        yield _decode_row(rows[row], block, row, manifest["special_tokens"], tokenizer)


def _read_block(files: _Files, split: str, shard: Shard, entry: dict[str, Any], record: int) -> NDArray:
    """Read a block of rows [block_rows, sequence_length] from a shard after checking its hash."""
    from streaming.base.format import reader_from_json

    name = f"{split}/{shard.stored.name}"
    path = files.path(name, shard.stored.bytes)
    if file_xxh64(path) != shard.stored.xxh64:
        raise CramError(
            f"{files.uri}/{name}: xxh64 hash differs from index.json; copy the data set again or rebuild it"
        )
    root = files.root
    if shard.stored is not shard.raw:
        root = files.scratch / "raw"
        unpacked = root / split / shard.raw.name
        unpacked.parent.mkdir(parents=True, exist_ok=True)
        try:
            unpack_zstd(path, unpacked, shard.raw.bytes)
        except UnpackError as error:
            raise CramError(f"{files.uri}/{name}: cannot be unpacked ({error}); copy the data set again") from None
    reader = reader_from_json(str(root), split, entry)
    reader.validate(False)  # refuse pickled columns
    return reader.decode_sample(reader.get_sample_data(record))[COLUMN]


def _decode_row(ids: NDArray, block: int, row: int, special: dict[str, int], tokenizer: Tokenizer) -> SampleRow:
    kept = ids[: np.flatnonzero(ids != special["pad"])[-1] + 1] if (ids != special["pad"]).any() else ids[:0]
    parts = np.split(kept, np.flatnonzero(kept == special["sep"]) + 1)
    continues = bool(len(parts[-1]))
    documents = [part[part != special["sep"]] for part in (parts if continues else parts[:-1])]
    decoded = [tokenizer.decode(document.tolist(), skip_special_tokens=False) for document in documents]
    return SampleRow(block, row, decoded, continues, len(ids) - len(kept))
