"""From sources to chunks: clean and filter text and assign it to a split, one document at a time."""

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
from cram_composer.data.pipeline.sources import Source, held_out_share, open_build_sources, source_configs
from cram_composer.data.pipeline.stages.clean import Cleaner
from cram_composer.data.pipeline.stages.counts import StageCounts
from cram_composer.data.pipeline.stages.examples import Examples
from cram_composer.data.pipeline.stages.filters import FILTERS
from cram_composer.data.pipeline.text import PIECE_CHARACTERS, Piece, assign_split, join_pieces
from cram_composer.errors import CramError

CHUNK_CHARACTERS = 1 << 20
BAD_EXAMPLES = 20  # problems of bad records to keep for each source
DUPLICATE_STAGES = ("exact_duplicates", "near_duplicates")


def enabled_stages(config: StagesConfig) -> list[str]:
    """List the names of the enabled stages in the order of their application."""
    return [name for name, stage in config if stage is not None]


def needs_all_documents(config: StagesConfig) -> bool:
    """Return True if an enabled stage compares documents with each other."""
    return any(getattr(config, name) is not None for name in (*DUPLICATE_STAGES, "repeated_spans"))


@dataclass
class StageStatistics:
    """Counts by stage, and examples, of the documents that stages have processed."""

    counts: dict[str, StageCounts] = field(default_factory=dict)
    examples: Examples = field(default_factory=Examples)

    def record(self, stage: str, before: str, after: str | None, reason: str | None) -> None:
        """Count a document that `stage` received as `before` and passed on as `after`, or dropped for `reason`."""
        counts = self.counts.setdefault(stage, StageCounts(stage))
        counts.documents_in += 1
        counts.characters_in += len(before)
        if after is not None:
            counts.documents_out += 1
            counts.characters_out += len(after)
        if reason is not None:
            counts.reasons[reason] = counts.reasons.get(reason, 0) + 1

    def offer_kept(self, text: str) -> None:
        """Offer a document that passed all stages as an example."""
        self.examples.offer("", None, text, example_priority(text))

    def record_drop(self, stage: str, text: str, reason: str) -> None:
        """Count a dropped document and offer it as an example."""
        self.record(stage, text, None, reason)
        self.examples.offer(stage, reason, text, example_priority(text))

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict for the result of a task."""
        return {"counts": [counts.as_dict() for counts in self.counts.values()], "examples": self.examples.state()}

    def merge(self, result: dict[str, Any]) -> None:
        """Add the dict that `as_dict` returned in another task."""
        for values in result["counts"]:
            self.counts.setdefault(values["name"], StageCounts(values["name"])).merge(StageCounts(**values))
        self.examples.merge(Examples.from_state(result["examples"]))


def example_priority(text: str) -> int:
    """Return a hash of the text, by which examples are sampled reproducibly."""
    return xxhash.xxh3_64_intdigest(text[:PIECE_CHARACTERS].encode("utf-8", "replace"), seed=1)


@dataclass
class SourceCounts:
    """Documents and characters read from a source, with white space collapsed, before any stage; skipped records."""

    documents: int = 0
    characters: int = 0
    bad_records: int = 0
    bad_examples: list[str] = field(default_factory=list)


def bad_records_error(limit: int, problem: str) -> CramError:
    """Return the error about more bad records than `limit`."""
    return CramError(f"more than {limit} bad records, such as {problem}; mend the text or raise max_bad_records")


class PartitionReader:
    """Reads the chunks of one partition; `statistics` and `source_counts` are complete after the last chunk."""

    def __init__(self, config: DataBuildConfig, partition: int) -> None:
        self._config = config
        self._partition = partition
        self.statistics = StageStatistics()
        # One entry may open as several sources: the starter text is two packages.
        entries = list(enumerate(source_configs(config)))
        trained_on = len(config.sources)
        # Held-out files come first, so that they keep documents that are also in the train text.
        entries = [*entries[trained_on:], *entries[:trained_on]]
        self.opened_sources = [(i, source) for i, entry in entries for source in open_build_sources(config, [entry])]
        self.source_counts = [SourceCounts() for _ in self.opened_sources]
        stages = config.stages
        self._cleaner = None if stages.clean is None else Cleaner(stages.clean)
        self._filters: list[tuple[str, Callable[[str], str | None]]] = [
            (name, _bind_config(reason, getattr(stages, name)))
            for name, reason in FILTERS.items()
            if getattr(stages, name) is not None
        ]
        # Without filters, smaller chunks save memory.
        self._characters = CHUNK_CHARACTERS if enabled_stages(stages) else PIECE_CHARACTERS

    def chunks(self, label: str, progress: bool) -> Iterator[Chunk]:
        """Yield all chunks of this partition in order."""
        partitions = self._config.partitions
        for (index, source), counts in zip(self.opened_sources, self.source_counts, strict=True):
            pieces = partition_pieces(source, self._partition, partitions)
            expected = expected_bytes(source, self._partition, partitions)
            with Progress(f"{label} of {source.name}", expected, progress) as bar:
                for chunk, size in self._chunks(index, pieces, counts):
                    yield chunk
                    bar.advance(size)

    def _chunks(self, source: int, pieces: Iterator[Piece], counts: SourceCounts) -> Iterator[tuple[Chunk, int]]:
        """Yield the chunks of a source, each with its number of bytes before cleaning."""
        split: int | None = None
        share = held_out_share(self._config, source)
        for piece in join_pieces(pieces, self._characters):
            if piece.problem is not None:
                self._count_bad_record(piece.problem, counts)
            text = piece.text if self._cleaner is None else self._clean(piece.text)
            collapsed = " ".join(text.split())
            first = split is None
            if split is None:
                if not collapsed:
                    continue  # no text of the document yet
                split = assign_split(collapsed, share, self._config.seed)
            counts.documents += first
            counts.characters += len(collapsed)
            kept = bool(collapsed) and self._passes_filters(text)
            yield Chunk(source, split, first, piece.last, collapsed if kept else None), len(piece.text.encode())
            if piece.last:
                split = None

    def _count_bad_record(self, problem: str, counts: SourceCounts) -> None:
        counts.bad_records += 1
        if len(counts.bad_examples) < BAD_EXAMPLES:
            counts.bad_examples.append(problem)
        if sum(each.bad_records for each in self.source_counts) > self._config.max_bad_records:
            raise bad_records_error(self._config.max_bad_records, problem)

    def _clean(self, text: str) -> str:
        assert self._cleaner is not None
        cleaned_text = self._cleaner(text)
        self.statistics.record("clean", text, cleaned_text, None if cleaned_text == text else "rewritten")
        return cleaned_text

    def _passes_filters(self, text: str) -> bool:
        for name, judge in self._filters:
            reason = judge(text)
            if reason is not None:
                self.statistics.record_drop(name, text, reason)
                return False
            self.statistics.record(name, text, text, None)
        return True


def _bind_config(reason: Callable[[str, Any], str | None], config: Any) -> Callable[[str], str | None]:
    return lambda text: reason(text, config)


def clean_sources(sources: list[Source], config: StagesConfig) -> list[Source]:
    """Apply the `clean` stage to the text of sources, for training the tokenizer."""
    if config.clean is None:
        return sources
    cleaner = Cleaner(config.clean)

    def rewritten(pieces: Callable[[], Iterator[Piece]]) -> Iterator[Piece]:
        return (piece._replace(text=cleaner(piece.text)) for piece in pieces())

    return [
        replace(source, parts=[replace(part, pieces=partial(rewritten, part.pieces)) for part in source.parts])
        for source in sources
    ]
