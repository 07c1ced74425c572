"""Read the manifest, examples and a few rows of a finished data set, local or in object storage."""

from __future__ import annotations

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
from cram_composer.data.loading.preflight import RemoteDataset, download_metadata
from cram_composer.data.manifest import (
    COLUMN,
    EXAMPLES,
    MANIFEST,
    TOKENIZER,
    Manifest,
    Shard,
    check_tokenizer,
    load_manifest,
    read_index_entries,
    verify_shard,
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


@dataclass(frozen=True)
class _Place:
    """Location of a data set: a local folder, or object storage and a temporary folder for what is downloaded."""

    root: Path
    storage: Storage | None

    @property
    def uri(self) -> str:
        return str(self.root) if self.storage is None else self.storage.uri

    def fetch(self, name: str, limit: int = METADATA_BYTES) -> Path:
        """Return the path of a file, downloaded on first use."""
        path = self.root / name
        if self.storage is not None and not path.exists():
            self.storage.download(name, path, limit)
        return path

    def has(self, name: str) -> bool:
        return (self.root / name).is_file() if self.storage is None else self.storage.size(name) is not None


def load_data_set(uri: str) -> DataSet:
    """Load the data set at `uri`, a folder or a prefix in object storage.

    From object storage only the smallest shard of every split is downloaded, and deleted afterwards.

    Raises:
        CramError: not a finished data set of this format, a missing or damaged file, or no access.
    """
    with tempfile.TemporaryDirectory(prefix="cram-inspect-") as scratch:
        place = _Place(Path(scratch) / "remote", Storage(uri)) if is_remote(uri) else _Place(expand(uri), None)
        try:
            manifest = _read_manifest(place)
            tokenizer = Tokenizer.from_file(str(place.root / TOKENIZER))
            rows = {
                split: list(_sample_rows(place, split, manifest, tokenizer, Path(scratch) / "raw"))
                for split in manifest["splits"]
            }
            examples = read_json(place.fetch(EXAMPLES)) if place.has(EXAMPLES) else None
        except CramError as error:
            # The user knows a file of object storage by its URI, not by the temporary path.
            raise CramError(str(error).replace(str(place.root), place.uri)) from None
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            detail = " ".join(str(error).split()) or type(error).__name__
            raise CramError(f"{place.uri}: cannot be read: {detail}; copy the data set again or rebuild it") from error
        return DataSet(place.uri, manifest, examples, type(tokenizer.model).__name__, rows)


def _read_manifest(place: _Place) -> Manifest:
    """Read the manifest, after checking the tokenizer; from object storage, download both and the indexes."""
    if place.storage is not None and place.has(MANIFEST):
        return download_metadata(RemoteDataset(place.uri, None), place.root)
    manifest = load_manifest(place.root)
    check_tokenizer(place.root / TOKENIZER, manifest)
    return manifest


def _sample_rows(
    place: _Place, split: str, manifest: Manifest, tokenizer: Tokenizer, unpacked: Path
) -> Iterator[SampleRow]:
    """Rows spread evenly over the split, or over its smallest shard if shards are downloaded."""
    shards = read_index_entries(place.root, split, manifest)
    ends = list(accumulate(entry["samples"] for _, entry in shards))
    first, end = 0, ends[-1]
    if place.storage is not None:
        smallest = min(range(len(shards)), key=lambda i: (shards[i][0].stored.bytes, i))
        first, end = ends[smallest] - shards[smallest][1]["samples"], ends[smallest]
    for number in range(ROWS_PER_SPLIT):
        at = (end - first) * (number + 0.5) / ROWS_PER_SPLIT
        block = first + int(at)
        shard, entry = shards[index := bisect_right(ends, block)]
        place.fetch(f"{split}/{shard.stored.name}", shard.stored.bytes)
        rows = _read_block(place.root, split, shard, entry, block - ends[index] + entry["samples"], unpacked)
        row = int((at - int(at)) * len(rows))
        yield _decode_row(rows[row], block, row, manifest["special_tokens"], tokenizer)


def _read_block(root: Path, split: str, shard: Shard, entry: dict[str, Any], record: int, unpacked: Path) -> NDArray:
    """Read a block of rows [block_rows, sequence_length] from a shard after checking it; unpack it below `unpacked`."""
    from streaming.base.format import reader_from_json

    path = root / split / shard.stored.name
    verify_shard(path, shard.stored)
    if shard.stored is not shard.raw:
        root = unpacked
        target = root / split / shard.raw.name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            unpack_zstd(path, target, shard.raw.bytes)
        except UnpackError as error:
            raise CramError(f"{path}: cannot be unpacked ({error}); copy the data set again") from None
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
