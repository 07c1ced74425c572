"""The schema of a data build: every key that a YAML under yamls/data/ may set, with its type and default."""

from __future__ import annotations

from dataclasses import dataclass, field

from cram_composer.config.fields import number


@dataclass
class SourceConfig:
    """Where text comes from. A key that the `kind` does not read is refused."""

    kind: str = "files"  # starter (text that pip installed), files (on this machine), hub (Hugging Face, streamed)
    name: str | None = None  # for the manifest; default: the kind, or the data set's id
    licence: str | None = None  # for the manifest
    max_characters: int | None = None  # stop after about this much of the source
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
class TokenizerConfig:
    """WordPiece trained on a sample of the train split; or, with `path`, an existing tokenizer as it is."""

    path: str | None = None  # folder of a fast Hugging Face tokenizer with pad, unk, cls, sep and mask tokens
    vocab_size: int = number(32768, 64)
    sample_bytes: int = number(256 << 20, 1)  # text it learns from: the head of every file, in proportion to size
    limit_alphabet: int = number(1000, 1)  # the most frequent characters; the words of others become [UNK]


@dataclass
class PackingConfig:
    """Documents are concatenated, [SEP] after each, and chopped into rows; rows are stored in blocks."""

    sequence_length: int = number(128, 8)  # tokens in a row
    block_rows: int = number(256, 1)  # rows in a record, which is read as a whole


@dataclass
class DataBuildConfig:
    """A whole data build: what goes in, what is done to it, where the result goes."""

    name: str = ""
    output: str = ""  # folder to make; `~` and $VARIABLES are filled in
    overwrite: bool = False  # replace a finished data set at `output`
    seed: int = number(0, 0, 2**63 - 1)  # of the validation split and the shuffle
    sources: list[SourceConfig] = field(default_factory=list)
    normalise: NormaliseConfig = field(default_factory=NormaliseConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    packing: PackingConfig = field(default_factory=PackingConfig)
    validation_fraction: float = number(0.01, 1e-9, 0.5)  # of the documents
    shuffle_memory_mib: int = number(256, 1)  # MiB of rows that are shuffled in memory at a time
