"""The schema of a data build: every key that a YAML under yamls/data/ may set, with its type and default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cram_composer.config.schema.fields import choice, number


@dataclass
class SourceConfig:
    """Where text comes from. A key that the `kind` does not read is refused."""

    kind: str = "files"  # starter (text that pip installed), files (on this machine), hub (Hugging Face, streamed)
    name: str | None = None  # for the manifest; default: the kind, or the data set's id
    licence: str | None = None  # for the manifest
    max_characters: int | None = None  # stop after about this much of the source
    stream: str | None = None  # a train stream of its own, which `data.mixture` can weigh; default: with the others
    # files:
    paths: list[str] = field(default_factory=list)  # .txt .jsonl .jsonl.gz .jsonl.zst .parquet; files, globs, folders
    text_column: str = "text"  # of .jsonl and .parquet files and of a hub data set
    document: str = "file"  # what a document is in a .txt file: file, line, or blank-line (separated by blank lines)
    # hub:
    dataset: str | None = None  # id, such as HuggingFaceFW/fineweb-edu, or a folder in a form `datasets` knows
    subset: str | None = None
    split: str = "train"
    revision: str | None = None  # commit or tag; default: the newest, whose commit goes into the manifest


@dataclass
class NormaliseConfig:
    """Done inside the tokenizer, so that the exported one does it to fine-tuning text as well."""

    lowercase: bool = True
    strip_accents: bool = True
    ascii_only: bool = False  # typographic quotes and dashes become ASCII ones; other characters are dropped


@dataclass
class CleanConfig:
    """Text is rewritten before anything looks at it. Unlike `normalise`, this is not part of the tokenizer."""

    unicode: str = choice("nfkc", "nfc", "none")  # Unicode normalisation form
    ascii: bool = False  # typographic marks become ASCII ones, accents go, other characters are dropped


@dataclass
class LengthConfig:
    """Documents that are too short or too long are dropped."""

    min_characters: int = number(200, 0)
    max_characters: int | None = number(None, 1)


@dataclass
class QualityConfig:
    """Gopher's rules for natural text (Rae et al. 2021, arXiv 2112.11446, table A1)."""

    min_words: int = number(50, 0)
    max_words: int = number(100_000, 1)
    min_mean_word_length: float = number(3.0, 0.0)  # characters
    max_mean_word_length: float = number(10.0, 0.0)
    max_symbol_ratio: float = number(0.1, 0.0)  # "#" and "..." per word
    min_alphabetic_words: float = number(0.8, 0.0, 1.0)  # share of words with a letter
    max_bullet_lines: float = number(0.9, 0.0, 1.0)  # share of lines that begin with a bullet
    max_ellipsis_lines: float = number(0.3, 0.0, 1.0)  # share of lines that end with an ellipsis


@dataclass
class LanguageConfig:
    """A language is told by its script and its commonest words: no pretrained model has a place in a cram."""

    stop_words: list[str] = field(default_factory=lambda: ["the", "be", "to", "of", "and", "that", "have", "with"])
    min_stop_words: int = number(2, 0)  # different ones that must occur
    script: str = "LATIN"  # first word of the Unicode names of its letters
    min_script: float = number(0.9, 0.0, 1.0)  # share of letters in that script


@dataclass
class ExactDuplicatesConfig:
    """Of documents that are the same but for white space, the first is kept."""

    ignore_case: bool = True


@dataclass
class NearDuplicatesConfig:
    """MinHash-LSH (Broder 1997; Leskovec et al. 2020, chapter 3): a document like an earlier one is dropped.

    Two documents of Jaccard similarity s meet with probability 1 - (1 - s^rows)^bands.
    """

    words: int = number(5, 1)  # length of a shingle
    bands: int = number(14, 1)
    rows: int = number(8, 1)  # hashes in a band: with 14 bands, half of the pairs at s = 0.69 meet


@dataclass
class RepeatedSpansConfig:
    """Exact-substring removal (Lee et al. 2022, arXiv 2107.06499): every copy of a long span but the first goes."""

    length: int = number(75, 16)  # bytes that repeat; the paper tries 50, 75 and 100


@dataclass
class CompressibilityConfig:
    """The paper's filter (Geiping and Goldstein 2022, section 4.4), with the build's own tokenizer."""

    threshold: float = number(0.25, 0.0)  # drop a document with at least this many tokens per character


@dataclass
class StagesConfig:
    """What is done to documents, in this order; null is off, `{}` is on with the values above."""

    clean: CleanConfig | None = None
    length: LengthConfig | None = None
    quality: QualityConfig | None = None
    language: LanguageConfig | None = None
    exact_duplicates: ExactDuplicatesConfig | None = None
    near_duplicates: NearDuplicatesConfig | None = None
    repeated_spans: RepeatedSpansConfig | None = None
    compressibility: CompressibilityConfig | None = None


@dataclass
class TokenizerConfig:
    """Trained on a sample of the train split; or, with `path`, an existing tokenizer as it is."""

    path: str | None = None  # folder of a fast Hugging Face tokenizer with pad, unk, cls, sep and mask tokens
    kind: str = choice("wordpiece", "bpe", "unigram", "byte-bpe")  # byte-bpe: any text, no unknown token
    vocab_size: int = number(32768, 64, 131072)
    sample: str = choice("head", "spread")  # of every file, in proportion to size: its head, or documents from all over
    sample_bytes: int = number(256 << 20, 1)  # text it learns from
    limit_alphabet: int = number(1000, 1)  # the most frequent characters; the words of others become [UNK]


@dataclass
class PackingConfig:
    """Documents, [SEP] after each, become rows; rows are stored in blocks."""

    # chop: concatenate and cut (the paper). best-fit: put documents whole where they fit best, [PAD] in what is left
    # (Ding et al. 2024, arXiv 2404.10830); only a document longer than a row is cut.
    kind: str = choice("chop", "best-fit")
    sequence_length: int = number(128, 8)  # tokens in a row
    block_rows: int = number(256, 1)  # rows in a record, which is read as a whole


@dataclass
class DataBuildConfig:
    """A whole data build: what goes in, what is done to it, where the result goes."""

    name: str = ""
    output: str = ""  # folder to make, or s3://bucket/path, gs://, oci://, azure://; `~` and $VARIABLES are filled in
    overwrite: bool = False  # replace a finished data set at `output`
    seed: int = number(0, 0, 2**63 - 1)  # of the validation split and the shuffle
    sources: list[SourceConfig] = field(default_factory=list)
    stages: StagesConfig = field(default_factory=StagesConfig)
    normalise: NormaliseConfig = field(default_factory=NormaliseConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    packing: PackingConfig = field(default_factory=PackingConfig)
    # Order of the train rows: random; unigram-likelihood (likely rows first); sentence-length (rows of short sentences
    # first); fragment (rows of few documents first). All but random are kept in training (data.order).
    ordering: str = choice("random", "unigram-likelihood", "sentence-length", "fragment")
    compression: str = choice("none", "zstd")  # of the shards
    validation_fraction: float = number(0.01, 1e-9, 0.5)  # of the documents
    shuffle_memory_mib: int = number(256, 1)  # MiB of rows that are shuffled in memory at a time
    partitions: int = number(1, 1, 4096)  # tasks the work is cut into; part of what the shards are
    jobs: int | None = number(None, 1)  # partitions worked on at a time on this machine; default: one per core
    executor: str = choice("local", "slurm")  # where partitions run
    slurm: dict[str, Any] = field(default_factory=dict)  # submitit's settings for Slurm, such as {slurm_partition: cpu}
    work: str | None = None  # folder for what is in the making; default: beside `output`, or in $CRAM_CACHE
