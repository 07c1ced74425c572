"""What is done to the text: sources -> splits -> tokenizer -> packed rows -> shuffled MDS shards -> manifest.

Memory, beyond the interpreter and the libraries, is bounded whatever the size of the corpus, for text in a natural
language: 256 MiB + the larger of 2 x `tokenizer.sample_bytes` (while the tokenizer is trained) and
`shuffle_memory_mib` (afterwards). Text whose words hardly ever repeat makes the training of a tokenizer cost more.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from cram_composer import __version__
from cram_composer.config.data_schema import DataBuildConfig
from cram_composer.data.manifest import FORMAT_VERSION, MANIFEST, Manifest, SplitCounts
from cram_composer.data.packing import Packer, unigram_nats
from cram_composer.data.progress import Progress, say
from cram_composer.data.shuffle import blocks, shuffled, write_shards
from cram_composer.data.sources import Source, open_sources
from cram_composer.data.text import SPLITS, SplitPiece, split_documents
from cram_composer.data.tokenizer import (
    BuiltTokenizer,
    adopt_tokenizer,
    save_tokenizer,
    train_tokenizer,
    write_sample,
)
from cram_composer.errors import CramError
from cram_composer.files import write_json

# Text that is tokenized at once. What becomes of it takes about 120 bytes a token, and two batches are there at a time.
_BATCH_CHARACTERS = 1 << 19
_LIBRARIES = ("numpy", "tokenizers", "transformers", "mosaicml-streaming")


@dataclass
class _Counts:
    """Documents and characters of a split or of a source."""

    documents: int = 0
    characters: int = 0

    def add(self, piece: SplitPiece) -> None:
        self.documents += piece.first
        self.characters += len(piece.text)


@dataclass
class _Split:
    """A split in the making; `number` is its place in SPLITS."""

    name: str
    number: int
    packer: Packer
    counts: _Counts


def described(config: DataBuildConfig) -> dict[str, Any]:
    """The configuration as nested dicts, less what does not change the data set."""
    return {key: value for key, value in asdict(config).items() if key not in ("output", "overwrite")}


def assemble(folder: Path, config: DataBuildConfig, identity: str, progress: bool) -> None:
    """Make the data set in an empty folder, the manifest last. Raises CramError and OSError."""
    sources = open_sources(config.sources)
    _check_disk(folder, sources)
    tokenizer = _make_tokenizer(folder, config, sources, progress)
    length = config.packing.sequence_length
    # Ranks share training blocks out: were one of them shorter, one rank would reach the end of its epoch before the
    # others and wait for them while they wait for it.
    units = (config.packing.block_rows, 1)
    splits = [
        _Split(
            name, i, Packer(folder / f"{name}.rows", length, tokenizer.vocab_size, tokenizer.dtype, units[i]), _Counts()
        )
        for i, name in enumerate(SPLITS)
    ]
    by_source = [_encode(source, config, tokenizer, splits, progress) for source in sources]
    for split in splits:
        split.packer.close()
        if not split.packer.rows:
            raise CramError(
                f"the {split.name} split is empty: {split.counts.documents} of {sum(c.documents for c in by_source)} "
                f"documents, {split.packer.dropped_tokens} tokens; add text or change validation_fraction"
            )
    counts = {split.name: _write(folder, split, config, tokenizer, progress) for split in splits}
    train, validation = (split.packer.counts for split in splits)
    manifest: Manifest = {
        "format_version": FORMAT_VERSION,
        "name": config.name,
        "created_with": {"cram-composer": __version__} | {library: version(library) for library in _LIBRARIES},
        "seed": config.seed,
        "sequence_length": length,
        "block_rows": config.packing.block_rows,
        "dtype": tokenizer.dtype.name,
        "vocab_size": tokenizer.vocab_size,
        "special_tokens": tokenizer.special_tokens,
        "tokenizer_sha256": tokenizer.sha256,
        "splits": counts,
        "sources": [_describe(source, count) for source, count in zip(sources, by_source, strict=True)],
        # Rounded, because the last digits of a logarithm depend on the processor.
        "unigram_validation_nats": round(unigram_nats(train, validation, list(tokenizer.special_tokens.values())), 6),
        "config": described(config),
        "config_hash": identity,
    }
    write_json(folder / MANIFEST, manifest)


def _check_disk(folder: Path, sources: list[Source]) -> None:
    # At two bytes a token and 4.5 characters a token, the rows and their shuffled copy take about as much as the text.
    needed = sum(source.expected_bytes or 0 for source in sources)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CramError(
            f"{folder.parent}: the build needs about {needed / 1e9:.1f} GB of disk and {free / 1e9:.1f} GB are free; "
            "choose another output or free some space"
        )


def _make_tokenizer(folder: Path, config: DataBuildConfig, sources: list[Source], progress: bool) -> BuiltTokenizer:
    if config.tokenizer.path is not None:
        return adopt_tokenizer(config.tokenizer, folder / "tokenizer")
    sample = folder / "sample.txt"
    size = config.tokenizer.sample_bytes
    with Progress("sample for the tokenizer", None, progress) as bar:
        write_sample(sources, sample, size, config.validation_fraction, config.seed, bar)
    say(progress, f"training a WordPiece vocabulary of {config.tokenizer.vocab_size}")
    trained = train_tokenizer(sample, config.tokenizer, config.normalise, progress and sys.stderr.isatty())
    sample.unlink()
    built = save_tokenizer(trained, folder / "tokenizer")
    if built.vocab_size < config.tokenizer.vocab_size:
        say(progress, f"the text yields only {built.vocab_size} of {config.tokenizer.vocab_size} vocabulary entries")
    return built


def _encode(
    source: Source, config: DataBuildConfig, tokenizer: BuiltTokenizer, splits: list[_Split], progress: bool
) -> _Counts:
    """Tokenize a source into the packers of both splits."""
    counts = _Counts()
    pieces = split_documents(source.pieces(), config.validation_fraction, config.seed)
    with Progress(f"tokens of {source.name}", source.expected_bytes, progress) as bar:
        for batch, encoded in tokenizer.encode_batches(_batches(pieces)):
            ids: list[list[int]] = [[] for _ in splits]
            for piece, piece_ids in zip(batch, encoded, strict=True):
                ids[piece.split] += piece_ids
                if piece.last:
                    ids[piece.split].append(tokenizer.special_tokens["sep"])
                counts.add(piece)
                splits[piece.split].counts.add(piece)
            for split, split_ids in zip(splits, ids, strict=True):
                split.packer.add(split_ids)
            bar.advance(sum(len(piece.text.encode()) for piece in batch), sum(map(len, ids)))
    return counts


def _batches(pieces: Iterator[SplitPiece]) -> Iterator[list[SplitPiece]]:
    batch: list[SplitPiece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write(
    folder: Path, split: _Split, config: DataBuildConfig, tokenizer: BuiltTokenizer, progress: bool
) -> SplitCounts:
    """Shuffle the rows of a split into its shards."""
    packer = split.packer
    tokens = packer.rows * config.packing.sequence_length
    with Progress(f"{split.name} shards", tokens * tokenizer.dtype.itemsize, progress) as bar:
        rows = shuffled(
            packer.path,
            packer.rows,
            config.packing.sequence_length,
            tokenizer.dtype,
            config.shuffle_memory_mib << 20,
            [config.seed, split.number],
        )

        def watched() -> Iterator[NDArray]:
            for block in blocks(rows, config.packing.block_rows):
                yield block
                bar.advance(block.nbytes, block.size)

        records, bytes_ = write_shards(folder / split.name, watched(), tokenizer.dtype)
    return {
        "documents": split.counts.documents,
        "characters": split.counts.characters,
        "rows": packer.rows,
        "tokens": tokens,
        "unk_tokens": int(packer.counts[tokenizer.special_tokens["unk"]]),
        "dropped_tokens": packer.dropped_tokens,
        "blocks": records,
        "bytes": bytes_,
    }


def _describe(source: Source, counts: _Counts) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": source.name, "kind": source.kind, "licence": source.licence, **source.origin}
    paths = [part.path for part in source.parts if part.path is not None]
    if paths:
        entry["files"] = [_describe_file(path) for path in paths]
    return {**entry, "documents": counts.documents, "characters": counts.characters}


def _describe_file(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return {"path": path.name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()}
