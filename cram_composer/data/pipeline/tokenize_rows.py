"""From chunks to rows: tokenize, drop what hardly compresses, pack."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cram_composer.config.schema.data_build import CompressibilityConfig
from cram_composer.data.pipeline.document_store import Chunk
from cram_composer.data.pipeline.ingest import Judgements
from cram_composer.data.pipeline.rows.encoding import encoder
from cram_composer.data.pipeline.rows.packing import BestFitPacker, Packer
from cram_composer.data.pipeline.tokenizer.tokenizer import BuiltTokenizer, open_backend
from cram_composer.data.pipeline.workspace import Work

_BATCH_CHARACTERS = 1 << 19  # tokenized at once; what becomes of them takes about 120 bytes a token
_NONE = np.zeros(0, np.uint32)


@dataclass
class SplitText:
    """What went into a split; a document counts once, however many chunks it was read in."""

    documents: int = 0
    characters: int = 0


class Encoder:
    """Packs the chunks of one partition into FOLDER/SPLIT.PARTITION.rows, a packer per split."""

    def __init__(self, work: Work, partition: int, judgements: Judgements) -> None:
        config = work.config
        self._work = work
        self._partition = partition
        self._filter = config.stages.compressibility
        self._judgements = judgements
        self.tokenizer = open_tokenizer(work)
        folder = work.folder("rows")
        arguments = (config.packing.sequence_length, self.tokenizer.vocab_size, self.tokenizer.dtype)
        self._packers: list[Packer | BestFitPacker] = []
        for split in work.splits:
            path = rows_path(folder, split, partition)
            if config.packing.kind == "chop":
                self._packers.append(Packer(path, *arguments))
            else:
                self._packers.append(BestFitPacker(path, *arguments, self.tokenizer.special_tokens["pad"]))
        self._text = [SplitText() for _ in work.splits]
        self._open = [False] * len(work.splits)  # a document that has tokens but has not ended
        self._split_of = [work.splits.index(work.stream_of(source)) for source in range(len(config.sources))]

    def run(self, chunks: Iterator[Chunk]) -> None:
        """Pack everything."""
        sep = self.tokenizer.special_tokens["sep"]
        encode = encoder(self.tokenizer.backend)
        for batch in _batches(chunks):
            encoded = iter(encode([chunk.text for chunk in batch if chunk.text is not None]))
            ids: list[list[NDArray]] = [[] for _ in self._packers]
            last: list[list[bool]] = [[] for _ in self._packers]
            for chunk in batch:
                split = len(self._packers) - 1 if chunk.split else self._split_of[chunk.source]
                tokens = _NONE if chunk.text is None else next(encoded)
                self._add(split, chunk, tokens, ids[split], last[split])
            for packer, packed, ends in zip(self._packers, ids, last, strict=True):
                if packed:
                    packer.add_documents(packed, ends, sep)
        for packer in self._packers:
            packer.close()

    def _add(self, split: int, chunk: Chunk, tokens: NDArray, ids: list[NDArray], last: list[bool]) -> None:
        if chunk.text is not None and self._keep(chunk.text, len(tokens)):
            self._text[split].documents += not self._open[split]
            self._text[split].characters += len(chunk.text)
            self._judgements.keep(chunk.text)
            self._open[split] = True
        else:
            tokens = _NONE
        if len(tokens) or (chunk.last and self._open[split]):
            ids.append(tokens)
            last.append(chunk.last)
        if chunk.last:
            self._open[split] = False

    def _keep(self, text: str, tokens: int) -> bool:
        config = self._filter
        if config is None:
            return True
        reason = incompressible(text, tokens, config)
        if reason is not None:
            self._judgements.drop("compressibility", text, reason)
            return False
        self._judgements.record("compressibility", text, text, None)
        return True

    def facts(self) -> dict[str, dict[str, Any]]:
        """By split: documents, characters, rows, dropped and padding tokens. Counts of ids go to the work folder."""
        for split, packer in zip(self._work.splits, self._packers, strict=True):
            self._work.save_counts("encode", split, self._partition, packer.counts)
        return {
            split: {
                **asdict(text),
                "rows": packer.rows,
                "dropped_tokens": packer.dropped_tokens,
                "padding_tokens": packer.padding_tokens,
            }
            for split, packer, text in zip(self._work.splits, self._packers, self._text, strict=True)
        }


def incompressible(text: str, tokens: int, config: CompressibilityConfig) -> str | None:
    """The paper's filter: why a text is dropped that takes `tokens`, None if it is kept."""
    return "too-many-tokens" if tokens >= config.threshold * len(text) else None


def rows_path(folder: Path, split: str, partition: int) -> Path:
    """Where a partition's rows of a split are, [rows, sequence_length] in the tokenizer's dtype."""
    return folder / f"{split}.{partition:05d}.rows"


def open_tokenizer(work: Work) -> BuiltTokenizer:
    """The tokenizer of the build, in any process that works on it."""
    facts = work.result("tokenizer")
    assert facts is not None
    return BuiltTokenizer(open_backend(work.tokenizer), **facts)


def _batches(chunks: Iterator[Chunk]) -> Iterator[list[Chunk]]:
    batch: list[Chunk] = []
    size = 0
    for chunk in chunks:
        batch.append(chunk)
        size += len(chunk.text or "")
        if size >= _BATCH_CHARACTERS or len(batch) >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
