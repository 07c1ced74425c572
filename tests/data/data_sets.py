"""Finished data sets written directly from rows, with any number of shards and streams, compressed or not."""

from __future__ import annotations

import atexit
import gc
import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from streaming import LocalDataset, MDSWriter
from streaming.base.shared.memory import SharedMemory
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from cram_composer.data.loading.shared_memory import remove_stale_shared_memory

LENGTH = 16
BLOCK_ROWS = 8
VOCABULARY = 200
TOKENS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def numbered_rows(count: int, start: int = 0, length: int = LENGTH) -> NDArray[np.uint16]:
    """Return rows [count, length] whose first two tokens encode their number."""
    rows = np.random.default_rng(start).integers(5, 200, (count, length)).astype(np.uint16)
    numbers = np.arange(start, start + count)
    rows[:, 0], rows[:, 1] = numbers // 190 + 5, numbers % 190 + 5
    return rows


def number_of(rows: NDArray) -> list[int]:
    """Return the numbers of `numbered_rows`."""
    return [int(a - 5) * 190 + int(b - 5) for a, b in rows[:, :2]]


def write_data_set(
    root: Path,
    rows: Mapping[str, int] | int = 512,
    *,
    block_rows: int = BLOCK_ROWS,
    shard_blocks: int = 4,
    validation_rows: int = 64,
    compression: str = "none",
    ordering: str = "random",
) -> Path:
    """Write a data set like a build. `rows` counts the rows of each train stream, numbered across the streams."""
    streams = {"train": rows} if isinstance(rows, int) else rows
    (root / "tokenizer").mkdir(parents=True)
    vocabulary = {"[UNK]" if number == TOKENS["unk"] else f"t{number}": number for number in range(VOCABULARY)}
    Tokenizer(WordLevel(vocabulary, unk_token="[UNK]")).save(str(root / "tokenizer" / "tokenizer.json"))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (root / "tokenizer" / name).write_text("{}\n")
    start, splits = 0, {}
    for split, count in {**streams, "validation": validation_rows}.items():
        content = numbered_rows(count, start)
        start += count
        splits[split] = _write_split(root / split, content, block_rows, shard_blocks, compression)
    manifest = {
        "format_version": 2,
        "name": "made-up",
        "created_with": {},
        "seed": 0,
        "sequence_length": LENGTH,
        "block_rows": block_rows,
        "dtype": "uint16",
        "vocab_size": VOCABULARY,
        "special_tokens": TOKENS,
        "tokenizer_sha256": hashlib.sha256((root / "tokenizer" / "tokenizer.json").read_bytes()).hexdigest(),
        "packing": "chop",
        "ordering": ordering,
        "compression": compression,
        "partitions": 1,
        "streams": list(streams),
        "splits": splits,
        "stages": [],
        "sources": [],
        "unigram_validation_nats": 5.0,
        "config": {},
        "config_hash": "0",
    }
    (root / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return root


def close_shared_memory() -> None:
    """Free shared memory that Streaming keeps until the process ends, if there is much, or that killed processes left.

    Opening a data set opens the shared memory of all others, and a process can have only 1,024 open files.
    """
    descriptors = Path("/proc/self/fd")
    if descriptors.is_dir() and len(list(descriptors.iterdir())) > 200:
        gc.collect()
        remove_stale_shared_memory()
        for held in gc.get_objects():
            if type(held) is SharedMemory:
                atexit.unregister(held.cleanup)
                with suppress(BufferError):  # an array still uses it
                    held.cleanup()
                held.created_shms.clear()  # another process may take its name, and must not lose it


def _write_split(folder: Path, rows: NDArray, block_rows: int, shard_blocks: int, compression: str) -> dict[str, int]:
    blocks = [rows[i : i + block_rows] for i in range(0, len(rows), block_rows)]
    part = folder / "00000"
    with MDSWriter(
        out=str(part),
        columns={"rows": "ndarray:uint16"},
        hashes=["xxh64"],
        compression=None if compression == "none" else compression,
        size_limit=shard_blocks * (blocks[0].nbytes + 32),
    ) as writer:
        for block in blocks:
            writer.write({"rows": block})
    index = json.loads((part / "index.json").read_text())
    for shard in index["shards"]:
        for key in ("raw_data", "zip_data"):
            if shard[key]:
                shard[key]["basename"] = f"00000/{shard[key]['basename']}"
    (part / "index.json").unlink()
    (folder / "index.json").write_text(json.dumps(index))
    return {
        "documents": 1,
        "characters": rows.size,
        "rows": len(rows),
        "tokens": rows.size,
        "unk_tokens": 0,
        "padding_tokens": 0,
        "dropped_tokens": 0,
        "blocks": len(blocks),
        "bytes": sum(path.stat().st_size for path in part.iterdir()),
    }


def rows_of(root: Path, split: str) -> NDArray:
    """Return all rows of a split [rows, length], in order."""
    return np.concatenate([sample["rows"] for sample in LocalDataset(str(root / split))])


def flip_a_bit(path: Path) -> None:
    """Damage a file in its middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
