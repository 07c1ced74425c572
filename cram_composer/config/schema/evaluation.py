"""The schemas of evaluation protocols, `yamls/eval/*.yaml`: one for each `kind`."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from cram_composer.config.schema.base import Betas, Rate, Settings, Share, key


class TaskSettingsConfig(Settings):
    """Settings of one task; null is the protocol's. The rules of a cram allow none."""

    epochs: PositiveInt | None = key(None, "passes over the train split")
    batch_size: PositiveInt | None = key(None, "rows per step")
    lr: NonNegativeFloat | None = key(None, "peak learning rate")
    weight_decay: NonNegativeFloat | None = key(None, "of matrices")
    seeds: PositiveInt | None = key(None, "number of seeds")


class ProtocolConfig(Settings):
    """Fine-tuning on the tasks of a benchmark."""

    kind: Literal["fine-tuning"] = "fine-tuning"
    name: str = key("glue", "name of the protocol")
    benchmark: Literal["glue", "superglue"] = key("glue", "whose tasks these are")
    tasks: list[str] = key(["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"], "tasks to train on")
    not_averaged: list[str] = key(["wnli"], "tasks left out of the average")
    seeds: PositiveInt = key(5, "seeds of each task, from 1; the median counts")
    epochs: PositiveInt = key(5, "passes over the train split")
    batch_size: PositiveInt = key(16, "rows per step")
    lr: NonNegativeFloat = key(4e-5, "peak learning rate")
    schedule: Literal["cosine", "linear", "constant"] = key("cosine", "decay to zero after the warmup")
    warmup: Share = key(0.1, "share of the steps spent warming up")
    weight_decay: NonNegativeFloat = key(0.0, "of matrices")
    betas: Betas = key((0.9, 0.98), "AdamW's decay rates")
    eps: NonNegativeFloat = key(1e-6, "AdamW's epsilon")
    dropout: Rate = key(0.1, "dropout of the encoder and the head")
    max_length: int = key(128, "tokens of a row, a pair included; longer rows are cut", ge=8)
    mnli_start: bool = key(False, "start RTE, MRPC and STS-B from the MNLI model; against the rules")
    overrides: dict[str, TaskSettingsConfig] = key(dict, "settings by task")
    eval_batch_size: PositiveInt = key(64, "rows per batch when scoring")
    precision: Literal["auto", "bf16", "fp16", "fp32"] = key("auto", "auto: the fastest in hardware")


class ZeroShotConfig(Settings):
    """Settings of the protocols that train nothing."""

    seed: NonNegativeInt = key(1, "of the weights of untrained:MODEL, and of resampling")
    batch_tokens: PositiveInt = key(8192, "tokens of a batch with padding; a longer row is its own batch")
    precision: Literal["fp32", "bf16", "fp16", "auto"] = key("fp32", "auto: the fastest in hardware")


class MinimalPairsConfig(ZeroShotConfig):
    """Accuracy on minimal pairs by pseudo-log-likelihood."""

    kind: Literal["minimal-pairs"] = "minimal-pairs"
    name: str = key("minimal-pairs", "name of the protocol")
    score: Literal["pll", "within-word-l2r"] = key("pll", "pseudo-log-likelihood")


class MaskedWordsConfig(ZeroShotConfig):
    """Bits per character of masked words of a text."""

    kind: Literal["masked-words"] = "masked-words"
    name: str = key("masked-words", "name of the protocol")
    characters: PositiveInt = key(1_000_000, "of the text, about; the head of each file, by size")
    text_column: str = key("text", "column of .jsonl and .parquet files")
    window_characters: PositiveInt = key(320, "characters, in whole words, read together")
    mlm_probability: Share = key(0.15, "masking rate, of words")
    unknown_bits_per_byte: NonNegativeFloat = key(8.0, "of UTF-8 text under [UNK] or without any piece")
    bootstrap: int = key(1000, "resamples of the windows, for the interval", ge=2)


PROTOCOLS: dict[str, type[Settings]] = {
    "fine-tuning": ProtocolConfig,
    "minimal-pairs": MinimalPairsConfig,
    "masked-words": MaskedWordsConfig,
}
