"""From sources to chunks: text is cleaned, judged by the filters and assigned to a split, one document at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import xxhash

from cram_composer.config.schema.data_build import DataBuildConfig, StagesConfig
from cram_composer.data.pipeline.document_store import Chunk
from cram_composer.data.pipeline.partition import expected_bytes, partition_pieces
from cram_composer.data.pipeline.progress import Progress
from cram_composer.data.pipeline.sources import Source, open_sources
from cram_composer.data.pipeline.stages.clean import Cleaner
from cram_composer.data.pipeline.stages.counts import StageCounts
from cram_composer.data.pipeline.stages.examples import Examples
from cram_composer.data.pipeline.stages.filters import FILTERS
from cram_composer.data.pipeline.text import PIECE_CHARACTERS, Piece, split_of, whole

CHUNK_CHARACTERS = 1 << 20
DUPLICATE_STAGES = ("exact_duplicates", "near_duplicates")


def stages_on(config: StagesConfig) -> list[str]:
    """Names of the stages that are on, in the order in which they are applied."""
    return [name for name, stage in config if stage is not None]


def needs_all_documents(config: StagesConfig) -> bool:
    """Whether a stage is on that cannot judge a document without having seen the others."""
    return any(getattr(config, name) is not None for name in (*DUPLICATE_STAGES, "repeated_spans"))


@dataclass
class Judgements:
    """What stages did to the documents they saw: counts by stage, and examples."""

    counts: dict[str, StageCounts] = field(default_factory=dict)
    examples: Examples = field(default_factory=Examples)

    def record(self, stage: str, before: str, after: str | None, reason: str | None) -> None:
        """Count a document that `stage` was given as `before` and let through as `after`, or dropped for `reason`."""
        counts = self.counts.setdefault(stage, StageCounts(stage))
        counts.documents_in += 1
        counts.characters_in += len(before)
        if after is not None:
            counts.documents_out += 1
            counts.characters_out += len(after)
        if reason is not None:
            counts.reasons[reason] = counts.reasons.get(reason, 0) + 1

    def keep(self, text: str) -> None:
        """Perhaps keep a document that all stages let through as an example."""
        self.examples.offer("", None, text, example_key(text))

    def drop(self, stage: str, text: str, reason: str) -> None:
        """Count a document that is dropped, and perhaps keep it as an example."""
        self.record(stage, text, None, reason)
        self.examples.offer(stage, reason, text, example_key(text))

    def as_dict(self) -> dict[str, Any]:
        """For a task's result."""
        return {"counts": [counts.as_dict() for counts in self.counts.values()], "examples": self.examples.state()}

    def merge(self, result: dict[str, Any]) -> None:
        """Add what `as_dict` gave in another task."""
        for values in result["counts"]:
            self.counts.setdefault(values["name"], StageCounts(values["name"])).merge(StageCounts(**values))
        self.examples.merge(Examples.from_state(result["examples"]))


def example_key(text: str) -> int:
    """Which examples are kept is a matter of chance that is the same for the same text."""
    return xxhash.xxh3_64_intdigest(text[:PIECE_CHARACTERS].encode("utf-8", "replace"), seed=1)


@dataclass
class SourceCounts:
    """Documents and characters read of a source, white space collapsed, before any stage."""

    documents: int = 0
    characters: int = 0


class Reader:
    """The chunks of one partition; `judgements` and `sources` are complete when all have been taken."""

    def __init__(self, config: DataBuildConfig, partition: int) -> None:
        self._config = config
        self._partition = partition
        self.judgements = Judgements()
        # A source of the configuration may open as several: the starter text is two packages.
        self.opened = [(i, source) for i, entry in enumerate(config.sources) for source in open_sources([entry])]
        self.sources = [SourceCounts() for _ in self.opened]
        stages = config.stages
        self._cleaner = None if stages.clean is None else Cleaner(stages.clean)
        self._filters: list[tuple[str, Callable[[str], str | None]]] = [
            (name, _with(reason, getattr(stages, name)))
            for name, reason in FILTERS.items()
            if getattr(stages, name) is not None
        ]
        # Without a stage that judges documents nothing is gained by seeing them whole, and memory is.
        self._characters = CHUNK_CHARACTERS if stages_on(stages) else PIECE_CHARACTERS

    def chunks(self, label: str, progress: bool) -> Iterator[Chunk]:
        """Everything of this partition, in order."""
        partitions = self._config.partitions
        for (index, source), counts in zip(self.opened, self.sources, strict=True):
            pieces = partition_pieces(source, self._partition, partitions)
            expected = expected_bytes(source, self._partition, partitions)
            with Progress(f"{label} of {source.name}", expected, progress) as bar:
                for chunk, size in self._chunks(index, pieces, counts):
                    yield chunk
                    bar.advance(size)

    def _chunks(self, source: int, pieces: Iterator[Piece], counts: SourceCounts) -> Iterator[tuple[Chunk, int]]:
        """Chunks of a source, each with the bytes of text it was made of."""
        split: int | None = None
        for piece in whole(pieces, self._characters):
            text = piece.text if self._cleaner is None else self._clean(piece.text)
            collapsed = " ".join(text.split())
            first = split is None
            if split is None:
                if not collapsed:
                    continue  # nothing of the document yet
                split = split_of(collapsed, self._config.validation_fraction, self._config.seed)
            counts.documents += first
            counts.characters += len(collapsed)
            kept = bool(collapsed) and self._keep(text)
            yield Chunk(source, split, first, piece.last, collapsed if kept else None), len(piece.text.encode())
            if piece.last:
                split = None

    def _clean(self, text: str) -> str:
        assert self._cleaner is not None
        cleaned = self._cleaner(text)
        self.judgements.record("clean", text, cleaned, None if cleaned == text else "rewritten")
        return cleaned

    def _keep(self, text: str) -> bool:
        for name, judge in self._filters:
            reason = judge(text)
            if reason is not None:
                self.judgements.drop(name, text, reason)
                return False
            self.judgements.record(name, text, text, None)
        return True


def _with(reason: Callable[[str, Any], str | None], config: Any) -> Callable[[str], str | None]:
    return lambda text: reason(text, config)


def cleaned(sources: list[Source], config: StagesConfig) -> list[Source]:
    """The sources with their text rewritten as the `clean` stage does, for the tokenizer to learn from."""
    if config.clean is None:
        return sources
    cleaner = Cleaner(config.clean)

    def rewritten(pieces: Callable[[], Iterator[Piece]]) -> Iterator[Piece]:
        return (Piece(cleaner(piece.text), piece.last) for piece in pieces())

    return [
        replace(source, parts=[replace(part, pieces=partial(rewritten, part.pieces)) for part in source.parts])
        for source in sources
    ]
