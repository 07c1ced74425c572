"""The schema of a data build, `yamls/data/*.yaml`: sources, stages, tokenizer, packing, output."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Discriminator,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Tag,
    model_validator,
)

from cram_composer.config.schema.base import Settings, Share, TextSuffix, key


def _checked_set_name(name: str) -> str:
    if re.fullmatch(r"[\w-]+", name) is None:
        raise ValueError(f"{name!r} must consist of letters, digits, '-' and '_'")
    return name


SetName = Annotated[str, AfterValidator(_checked_set_name)]


class Source(Settings):
    """Settings of every source of text."""

    kind: str
    max_characters: PositiveInt | None = key(None, "stop after about this many characters", le=10**15)
    max_words: PositiveInt | None = key(
        None, "stop after this many words, separated by white space, of both splits together", le=10**15
    )
    stream: SetName | None = key(None, "name of a separate train stream, for data.mixture; null: the shared stream")


class TextColumns(Settings):
    """The columns of a table that hold the text; `meta.text` names the key `text` in the column `meta`."""

    text_column: str = key("text", "column that holds the text; a.b names the key b in the column a")
    text_columns: list[str] | None = key(
        None, "columns to join, with an empty line between them, in the place of text_column", min_length=1
    )

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        if self.text_columns is not None and self.text_column != "text":
            raise ValueError("text_column: has no effect with text_columns; remove one of them")
        return self


class StarterConfig(Source):
    """English text included in the installation, 17 MB."""

    kind: Literal["starter"] = "starter"


class TextFiles(TextColumns):
    """Text files on this machine."""

    paths: list[str] = key(
        ...,
        "files, globs or folders: .txt .jsonl .json .csv .tsv (also .gz .zst .bz2) .parquet .arrow .zip, MDS",
    )
    text_suffixes: list[TextSuffix] = key(list, "suffixes of more files to read like .txt, such as .py")
    document: Literal["file", "line", "blank-line"] = key("file", "part of a .txt file that makes a document")


class FilesConfig(TextFiles, Source):
    """A source of text files."""

    kind: Literal["files"] = "files"
    name: str | None = key(None, "name in the manifest; null: the kind")
    licence: str | None = key(None, "for the manifest")


class HubConfig(TextColumns, Source):
    """A data set of the Hugging Face hub, streamed."""

    kind: Literal["hub"] = "hub"
    name: str | None = key(None, "name in the manifest; null: the id of the data set")
    licence: str | None = key(None, "for the manifest")
    dataset: str = key(..., "id, such as HuggingFaceFW/fineweb-edu, or a folder that `datasets` can load")
    subset: str | None = key(None, "configuration of the data set")
    split: str = key("train", "split of the data set")
    revision: str | None = key(None, "commit or tag; null: the newest, recorded in the manifest")


def _kind(source: Any) -> Any:
    return source.get("kind", "files") if isinstance(source, dict) else getattr(source, "kind", None)


SourceConfig = Annotated[
    Annotated[StarterConfig, Tag("starter")] | Annotated[FilesConfig, Tag("files")] | Annotated[HubConfig, Tag("hub")],
    Discriminator(_kind),
]


class NormaliseConfig(Settings):
    """Normalisation inside the tokenizer, so that the exported one applies it to fine-tuning text too."""

    lowercase: bool = key(True, "lower case")
    strip_accents: bool = key(True, "remove accents")
    ascii_only: bool = key(False, "map quotes and dashes to ASCII, remove other characters")


class CleanConfig(Settings):
    """Rewrite text before all other stages; unlike `normalise`, this is not part of the tokenizer."""

    unicode: Literal["nfkc", "nfc", "none"] = key("nfkc", "Unicode normalisation form")
    ascii: bool = key(False, "map typographic marks to ASCII, remove accents and other characters")


class LengthConfig(Settings):
    """Drop documents that are too short or too long."""

    min_characters: NonNegativeInt = key(200, "characters of the shortest document to keep", le=10**12)
    max_characters: PositiveInt | None = key(None, "characters of the longest document to keep", le=10**12)


class QualityConfig(Settings):
    """Gopher's rules for natural text (Rae et al. 2021, arXiv 2112.11446, table A1)."""

    min_words: NonNegativeInt = key(50, "fewest words", le=10**12)
    max_words: PositiveInt = key(100_000, "most words", le=10**12)
    min_mean_word_length: NonNegativeFloat = key(3.0, "smallest mean word length in characters", le=1e6)
    max_mean_word_length: NonNegativeFloat = key(10.0, "largest mean word length in characters", le=1e6)
    max_symbol_ratio: NonNegativeFloat = key(0.1, "largest number of '#' and '...' per word", le=1e6)
    min_alphabetic_words: Share = key(0.8, "smallest share of words with a letter")
    max_bullet_lines: Share = key(0.9, "largest share of lines that begin with a bullet")
    max_ellipsis_lines: Share = key(0.3, "largest share of lines that end with an ellipsis")


class LanguageConfig(Settings):
    """Detect the language by script and frequent words, because pretrained models are not allowed."""

    stop_words: list[str] = key(
        ["the", "be", "to", "of", "and", "that", "have", "with"], "frequent words of the language"
    )
    min_stop_words: NonNegativeInt = key(2, "number of different stop words that must occur", le=10**6)
    script: str = key("LATIN", "script, as the first word of the Unicode names of its letters")
    min_script: Share = key(0.9, "smallest share of letters in that script")


class ExactDuplicatesConfig(Settings):
    """Keep the first of documents that are equal up to white space."""

    ignore_case: bool = key(True, "compare in lower case")


class NearDuplicatesConfig(Settings):
    """MinHash-LSH (Broder 1997; Leskovec et al. 2020, chapter 3): drop similar documents.

    Two documents of Jaccard similarity s collide with probability 1 - (1 - s^rows)^bands.
    """

    words: PositiveInt = key(5, "words in a shingle", le=1000)
    bands: PositiveInt = key(14, "number of bands", le=1000)
    rows: PositiveInt = key(8, "hashes in a band; with 14 bands, half of the pairs at s = 0.69 collide", le=1000)


class RepeatedSpansConfig(Settings):
    """Exact-substring removal (Lee et al. 2022, arXiv 2107.06499): remove later copies of long spans."""

    length: int = key(
        75, "bytes of the shortest repeated span to remove; the paper tries 50, 75 and 100", ge=16, le=10**9
    )


class CompressibilityConfig(Settings):
    """Drop incompressible documents with the build's tokenizer (Cramming, section 4.4)."""

    threshold: NonNegativeFloat = key(0.25, "drop documents with at least this many tokens per character", le=1e6)


class StagesConfig(Settings):
    """Stages, applied in this order; null switches one off, `{}` switches it on with defaults."""

    clean: CleanConfig | None = key(None, "rewrite text")
    length: LengthConfig | None = key(None, "drop short and long documents")
    quality: QualityConfig | None = key(None, "drop text that is not natural language")
    language: LanguageConfig | None = key(None, "drop other languages")
    exact_duplicates: ExactDuplicatesConfig | None = key(None, "drop copies of documents")
    near_duplicates: NearDuplicatesConfig | None = key(None, "drop similar documents")
    repeated_spans: RepeatedSpansConfig | None = key(None, "remove repeated spans")
    compressibility: CompressibilityConfig | None = key(None, "drop incompressible documents")


class TokenizerConfig(Settings):
    """The tokenizer: trained on a sample of the train split, or loaded from `path`."""

    path: str | None = key(None, "folder of a fast Hugging Face tokenizer with all special tokens")
    kind: Literal["wordpiece", "bpe", "unigram", "byte-bpe"] = key("wordpiece", "algorithm; byte-bpe has no [UNK]")
    vocab_size: int = key(32768, "entries, special tokens included", ge=64, le=131072)
    sample: Literal["head", "spread"] = key("head", "sample the head of every file, or documents from everywhere")
    sample_bytes: PositiveInt = key(256 << 20, "bytes of text to train on", le=2**40)
    limit_alphabet: PositiveInt = key(
        1000, "number of most frequent characters to keep; words with other characters become [UNK]", le=131_072
    )


class PackingConfig(Settings):
    """Pack documents, each followed by [SEP], into rows, and store rows in blocks."""

    kind: Literal["chop", "best-fit"] = key(
        "chop", "concatenate and cut; or best fit of whole documents (Ding et al. 2024, arXiv 2404.10830)"
    )
    sequence_length: int = key(128, "tokens in a row", ge=8, le=131_072)
    segments: Literal["row", "sentence"] | None = key(
        None, "further markers, as fine-tuning has: [CLS] before a row; sentence: also [SEP] after sentences"
    )
    block_rows: PositiveInt = key(256, "rows in a block, which is read as one record", le=2**20)


def _checked_language(code: str) -> str:
    if re.fullmatch("[a-z]{2,3}|multilingual", code) is None:
        raise ValueError(f"must be an ISO 639 code such as en, or multilingual, got {code!r}")
    return code


Language = Annotated[str, AfterValidator(_checked_language)]


class DataBuildConfig(Settings):
    """A data build."""

    name: str = key("", "name in the manifest")
    output: str = key("", "folder or s3://bucket/path, gs://, azure://; ~ and $VARIABLES expand")
    overwrite: bool = key(False, "replace a finished data set at `output`")
    seed: int = key(0, "seed of the validation split and the shuffle", ge=0, le=2**63 - 1)
    sources: list[SourceConfig] = key(list, "sources of text")
    language: Language | None = key(None, "of the text, for the model card: an ISO 639 code or multilingual")
    on_bad_record: Literal["fail", "skip"] = key(
        "fail", "record or file that cannot be read: stop, or skip and count it"
    )
    max_bad_records: int = key(1000, "bad records to skip before the build fails", ge=1, le=10**12)
    stages: StagesConfig = key(StagesConfig, "processing of documents")
    normalise: NormaliseConfig = key(NormaliseConfig, "normalisation inside the tokenizer")
    tokenizer: TokenizerConfig = key(TokenizerConfig, "the tokenizer")
    packing: PackingConfig = key(PackingConfig, "rows and blocks")
    ordering: Literal["random", "unigram-likelihood", "sentence-length", "fragment"] = key(
        "random", "order of train rows: likely rows, short sentences or few documents first"
    )
    compression: Literal["none", "zstd"] = key("none", "compression of the shards")
    validation_fraction: float = key(0.01, "fraction of documents held out for validation", ge=1e-9, le=0.5)
    validation: TextFiles | None = key(None, "files for validation, instead of validation_fraction of `sources`")
    held_out: dict[SetName, TextFiles] = key(dict, "further held-out sets by name; a run reports the loss of each")
    shuffle_memory_mib: PositiveInt = key(256, "MiB of rows shuffled in memory at a time", le=2**24)
    partitions: int = key(1, "number of tasks to split the work into; determines the shards", ge=1, le=4096)
    jobs: PositiveInt | None = key(None, "parallel partitions on this machine; null: one per core", le=4096)
    executor: Literal["local", "slurm"] = key("local", "run partitions on this machine or as Slurm jobs")
    slurm: dict[str, Any] = key(dict, "submitit parameters, such as slurm_partition")
    work: str | None = key(None, "folder for unfinished work; null: beside `output`, or in $CRAM_CACHE")
