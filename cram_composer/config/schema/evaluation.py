"""The schemas of evaluation protocols, `yamls/eval/*.yaml`: one for each `kind`, which a file names or leaves out."""

from __future__ import annotations

from dataclasses import dataclass, field

from cram_composer.config.schema.fields import choice, number


@dataclass
class TaskSettingsConfig:
    """What one task does in a way of its own; None is as the protocol says. Rules of a cram: nothing."""

    epochs: int | None = number(None, 1)
    batch_size: int | None = number(None, 1)
    lr: float | None = number(None, 0.0)
    weight_decay: float | None = number(None, 0.0)
    seeds: int | None = number(None, 1)


@dataclass
class ProtocolConfig:
    """Fine-tuning of all tasks, and which of them are averaged."""

    kind: str = choice("fine-tuning")
    name: str = "glue"
    benchmark: str = choice("glue", "superglue")  # whose tasks these are
    tasks: list[str] = field(
        default_factory=lambda: ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]
    )
    not_averaged: list[str] = field(default_factory=lambda: ["wnli"])
    seeds: int = number(5, 1)  # of each task, from 1; the median counts
    epochs: int = number(5, 1)
    batch_size: int = number(16, 1)
    lr: float = number(4e-5, 0.0)
    schedule: str = choice("cosine", "linear", "constant")  # after the warmup, to zero
    warmup: float = number(0.1, 0.0, 1.0)  # share of the steps
    weight_decay: float = number(0.0, 0.0)  # of matrices
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = number(1e-6, 0.0)
    dropout: float = number(0.1, 0.0, 0.9)
    max_length: int = number(128, 8)  # tokens of a row, pairs with their separators; what is longer is cut
    mnli_start: bool = False  # RTE, MRPC and STS-B go on from the model of MNLI, which the rules of a cram forbid
    overrides: dict[str, TaskSettingsConfig] = field(default_factory=dict)  # by task
    eval_batch_size: int = number(64, 1)
    precision: str = choice("auto", "bf16", "fp16", "fp32")


@dataclass
class ZeroShotConfig:
    """What the protocols that train nothing have in common."""

    seed: int = number(1, 0)  # of the weights of untrained:MODEL, and of all else that is drawn
    batch_tokens: int = number(8192, 1)  # of a batch, padding included; a longer row is a batch of its own
    precision: str = choice("fp32", "bf16", "fp16", "auto")


@dataclass
class MinimalPairsConfig(ZeroShotConfig):
    """Which sentence of a pair is more likely by pseudo-log-likelihood."""

    kind: str = choice("minimal-pairs")
    name: str = "minimal-pairs"
    score: str = choice("pll", "within-word-l2r")


@dataclass
class MaskedWordsConfig(ZeroShotConfig):
    """Bits per character of masked words of a text."""

    kind: str = choice("masked-words")
    name: str = "masked-words"
    characters: int = number(1_000_000, 1)  # of the text, about; the head of each file, in proportion to its size
    text_column: str = "text"  # of .jsonl and .parquet files
    window_characters: int = number(320, 1)  # of whole words, which are read together
    mlm_probability: float = number(0.15, 0.0, 1.0)  # of a word
    unknown_bits_per_byte: float = number(8.0, 0.0)  # of the UTF-8 text under an [UNK], or without any piece
    bootstrap: int = number(1000, 2)  # resamples of the windows, for the interval


PROTOCOLS: dict[str, type] = {
    "fine-tuning": ProtocolConfig,
    "minimal-pairs": MinimalPairsConfig,
    "masked-words": MaskedWordsConfig,
}
