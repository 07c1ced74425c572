"""From chunks to rows: tokenize, drop incompressible text, pack."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cram_composer.config.schema.data_build import CompressibilityConfig
from cram_composer.data.pipeline.document_store import Chunk
from cram_composer.data.pipeline.ingest import StageStatistics
from cram_composer.data.pipeline.rows.encoding import build_encoder
from cram_composer.data.pipeline.rows.ordering import sentence_end_ids
from cram_composer.data.pipeline.rows.packing import BestFitPacker, ChopPacker, RowWriter, separate_sentences
from cram_composer.data.pipeline.sources import source_configs
from cram_composer.data.pipeline.text import SPLITS
from cram_composer.data.pipeline.tokenizer.tokenizer import BuiltTokenizer, open_backend
from cram_composer.data.pipeline.workspace import Workspace

_BATCH_CHARACTERS = 1 << 19  # tokenized at once; takes about 120 bytes of memory per token
_NONE = np.zeros(0, np.uint32)


@dataclass
class SplitTextCounts:
    """Documents and characters in a split; a document counts once, regardless of its number of chunks."""

    documents: int = 0
    characters: int = 0


class RowEncoder:
    """Packs the chunks of one partition into FOLDER/SPLIT.PARTITION.rows, with one packer per split."""

    def __init__(self, work: Workspace, partition: int, statistics: StageStatistics) -> None:
        config = work.config
        self._work = work
        self._partition = partition
        self._filter = config.stages.compressibility
        self._statistics = statistics
        self.tokenizer = open_tokenizer(work)
        folder = work.folder("rows")
        special, segments = self.tokenizer.special_tokens, config.packing.segments
        cls_id = None if segments is None else special["cls"]
        arguments = (config.packing.sequence_length, self.tokenizer.vocab_size, self.tokenizer.dtype, cls_id)
        writers = [RowWriter(rows_path(folder, split, partition), *arguments) for split in work.splits]
        self._packers: list[ChopPacker | BestFitPacker] = [
            ChopPacker(writer) if config.packing.kind == "chop" else BestFitPacker(writer, special["pad"])
            for writer in writers
        ]
        self._sentence_ends = sentence_end_ids(self.tokenizer.backend) if segments == "sentence" else None
        self._text = [SplitTextCounts() for _ in work.splits]
        self._unfinished = [False] * len(work.splits)  # True while a document has tokens but has not ended
        splits = [work.splits.index(work.stream_name(i)) for i in range(len(source_configs(config)))]
        validation, trained_on = work.splits.index(SPLITS[1]), len(config.sources)
        self._train_split = splits[:trained_on]  # of each source
        self._held_out_split = [validation] * trained_on + splits[trained_on:]

    def run(self, chunks: Iterator[Chunk]) -> None:
        """Encode and pack all chunks."""
        sep = self.tokenizer.special_tokens["sep"]
        encode = build_encoder(self.tokenizer.backend)
        for batch in _batch_chunks(chunks):
            encoded = iter(encode([chunk.text for chunk in batch if chunk.text is not None]))
            ids: list[list[NDArray]] = [[] for _ in self._packers]
            last: list[list[bool]] = [[] for _ in self._packers]
            for chunk in batch:
                split = (self._held_out_split if chunk.split else self._train_split)[chunk.source]
                tokens = _NONE if chunk.text is None else next(encoded)
                self._add_chunk(split, chunk, tokens, ids[split], last[split])
            for packer, packed, ends in zip(self._packers, ids, last, strict=True):
                if packed:
                    packer.add_documents(packed, ends, sep)
        for packer in self._packers:
            packer.close()

    def _add_chunk(self, split: int, chunk: Chunk, tokens: NDArray, ids: list[NDArray], last: list[bool]) -> None:
        if chunk.text is not None and self._is_compressible(chunk.text, len(tokens)):
            self._text[split].documents += not self._unfinished[split]
            self._text[split].characters += len(chunk.text)
            self._statistics.offer_kept(chunk.text)
            self._unfinished[split] = True
        else:
            tokens = _NONE
        if len(tokens) or (chunk.last and self._unfinished[split]):
            if self._sentence_ends is not None:
                tokens = separate_sentences(tokens, self._sentence_ends, self.tokenizer.special_tokens["sep"])
            ids.append(tokens)
            last.append(chunk.last)
        if chunk.last:
            self._unfinished[split] = False

    def _is_compressible(self, text: str, tokens: int) -> bool:
        config = self._filter
        if config is None:
            return True
        reason = incompressibility_reason(text, tokens, config)
        if reason is not None:
            self._statistics.record_drop("compressibility", text, reason)
            return False
        self._statistics.record("compressibility", text, text, None)
        return True

    def collect_statistics(self) -> dict[str, dict[str, Any]]:
        """Return documents, characters, rows, dropped and padding tokens by split; save the token counts."""
        for split, packer in zip(self._work.splits, self._packers, strict=True):
            self._work.save_token_counts("encode", split, self._partition, packer.writer.counts)
        return {
            split: {
                **asdict(text),
                "rows": packer.writer.rows,
                "dropped_tokens": packer.dropped_tokens,
                "padding_tokens": packer.padding_tokens,
            }
            for split, packer, text in zip(self._work.splits, self._packers, self._text, strict=True)
        }


def incompressibility_reason(text: str, tokens: int, config: CompressibilityConfig) -> str | None:
    """Return the reason to drop a text of this many tokens by the paper's filter, None to keep it."""
    return "too-many-tokens" if tokens >= config.threshold * len(text) else None


def rows_path(folder: Path, split: str, partition: int) -> Path:
    """Return the file of a partition's rows of a split: [rows, sequence_length] in the tokenizer's dtype."""
    return folder / f"{split}.{partition:05d}.rows"


def open_tokenizer(work: Workspace) -> BuiltTokenizer:
    """Load the tokenizer of the build."""
    facts = work.result("tokenizer")
    assert facts is not None
    return BuiltTokenizer(open_backend(work.tokenizer), **facts)


def _batch_chunks(chunks: Iterator[Chunk]) -> Iterator[list[Chunk]]:
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
