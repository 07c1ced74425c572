"""The schemas of evaluation protocols, `yamls/eval/*.yaml`: one for each `kind`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from cram_composer.config.schema.base import Betas, FilePath, Rate, Settings, Share, TextSuffix, key


class TaskSettingsConfig(Settings):
    """Settings of one task; null takes the protocol's value. The rules of a cram allow no settings per task."""

    epochs: PositiveInt | None = key(None, "passes over the train split", le=10_000)
    batch_size: PositiveInt | None = key(None, "rows per step", le=2**16)
    lr: NonNegativeFloat | None = key(None, "peak learning rate", le=100.0)
    weight_decay: NonNegativeFloat | None = key(None, "weight decay of matrices", le=1e4)
    seeds: PositiveInt | None = key(None, "number of seeds", le=1000)


class FineTuningConfig(Settings):
    """Settings of protocols that fine-tune a model on every task."""

    seeds: PositiveInt = key(5, "seeds per task, from 1; the result is the median", le=1000)
    epochs: PositiveInt = key(5, "passes over the train split", le=10_000)
    batch_size: PositiveInt = key(16, "rows per step", le=2**16)
    lr: NonNegativeFloat = key(4e-5, "peak learning rate", le=100.0)
    schedule: Literal["cosine", "linear", "constant"] = key("cosine", "decay to zero after the warmup")
    warmup: Share = key(0.1, "share of the steps spent warming up")
    weight_decay: NonNegativeFloat = key(0.0, "weight decay of matrices", le=1e4)
    betas: Betas = key((0.9, 0.98), "AdamW's decay rates")
    eps: NonNegativeFloat = key(1e-6, "AdamW's epsilon", le=1.0)
    dropout: Rate = key(0.1, "dropout of the encoder and the head")
    layer_lr_decay: float | None = key(
        None, "rate of a layer relative to the one above it (Clark et al. 2020, appendix B); null: 1", gt=0.0, le=1.0
    )
    max_length: int = key(128, "tokens of a text or pair of texts; longer ones are truncated", ge=8, le=131_072)
    overrides: dict[str, TaskSettingsConfig] = key(dict, "settings by task")
    eval_batch_size: PositiveInt = key(64, "rows per batch when scoring", le=2**16)
    precision: Literal["auto", "bf16", "fp16", "fp32"] = key("auto", "auto: the fastest that the hardware supports")


class ClassificationConfig(FineTuningConfig):
    """Settings of protocols that classify texts."""

    pooling: Literal["first", "mean", "attention", "pair"] | None = key(
        None,
        "what the classifier of a text reads; null: the model's own head; pair: the mean u of the first text and v of "
        "the second, |u - v| and u v",
    )


class GridConfig(Settings):
    """Settings to select from, for every model and task, by the task's first metric on held-out train rows."""

    batch_size: list[PositiveInt] = key([8, 16, 32, 64, 128], "rows per step", min_length=1)
    lr: list[NonNegativeFloat] = key([3e-5, 5e-5, 1e-4, 3e-4], "peak learning rates", min_length=1)
    held_out: float = key(0.1, "share of the train rows to select on, at random", gt=0.0, le=0.5)


class ProtocolConfig(ClassificationConfig):
    """Fine-tuning on the tasks of a benchmark."""

    kind: Literal["fine-tuning"] = "fine-tuning"
    name: str = key("glue", "name of the protocol")
    benchmark: Literal["glue", "superglue"] = key("glue", "benchmark of the tasks")
    tasks: list[str] = key(["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"], "tasks to train on")
    not_averaged: list[str] = key(["wnli"], "tasks left out of the average")
    mnli_start: bool = key(False, "start RTE, MRPC and STS-B from the MNLI model; breaks the rules of a cram")
    grid: GridConfig | None = key(
        None, "select batch_size and lr for each task on held-out train rows; breaks the rules of a cram; null: do not"
    )

    @model_validator(mode="after")
    def _check_start_and_grid(self) -> ProtocolConfig:
        if self.mnli_start and self.pooling is not None:
            raise ValueError("mnli_start: hands on the model's own head; set pooling=null or mnli_start=false")
        if self.grid is None:
            return self
        if self.mnli_start:
            raise ValueError("mnli_start: the grid selects settings without it; set grid=null or mnli_start=false")
        for task, own in self.overrides.items():
            for name in ("batch_size", "lr"):
                if getattr(own, name) is not None:
                    raise ValueError(f"overrides.{task}.{name}: has no effect with grid, which selects it; remove it")
        return self


class OwnTaskConfig(Settings):
    """A task made of files: .csv, .tsv, .jsonl[.gz|.zst] or .parquet with a row per text; for ner, CoNLL columns."""

    type: Literal["classification", "regression", "ner"] = key(
        "classification", "classes, or numbers, of texts; ner: entities, tagged word by word"
    )
    train: FilePath = key(..., "file of the rows to train on")
    validation: FilePath = key(..., "file of the rows to score; its classes are those of the train file")
    text: str = key("text", "column of the text")
    text_pair: str | None = key(None, "column of the second text of a pair")
    label: str = key("label", "column of the class, a text or an integer, or of the number")

    @model_validator(mode="after")
    def _columns_of_ner(self) -> OwnTaskConfig:
        if self.type == "ner":
            for name in ("text", "text_pair", "label"):
                if name in self.model_fields_set:
                    raise ValueError(f"{name}: has no effect with type=ner, which reads the first and last column")
        return self


class OwnDataConfig(ClassificationConfig):
    """Fine-tuning on a user's own files."""

    benchmark: ClassVar[str] = "own-data"
    kind: Literal["own-data"] = "own-data"
    name: str = key("own-data", "name of the protocol")
    tasks: dict[str, OwnTaskConfig] = key(dict, "files by name of the task")


class SimilarityConfig(FineTuningConfig):
    """Embeddings of texts after a short contrastive training on similar pairs."""

    benchmark: ClassVar[str] = "similarity"
    kind: Literal["similarity"] = "similarity"
    name: str = key("similarity", "name of the protocol")
    tasks: list[str] = key(["stsb", "mrpc", "qqp"], "tasks to train on and to score")
    epochs: NonNegativeInt = key(1, "passes over the similar pairs of the train split; 0 for none", le=10_000)
    batch_size: int = key(64, "pairs per step; each has the others' second texts as negatives", ge=2, le=2**16)
    lr: NonNegativeFloat = key(5e-5, "peak learning rate", le=100.0)
    temperature: float = key(0.05, "divides the cosines in the loss", ge=1e-3, le=100.0)


FineTuningProtocol = ProtocolConfig | OwnDataConfig | SimilarityConfig


class ZeroShotConfig(Settings):
    """Settings of protocols without training."""

    seed: NonNegativeInt = key(1, "seed of the weights of untrained:MODEL and of resampling", le=2**32 - 1)
    batch_tokens: PositiveInt = key(8192, "tokens per batch, with padding; a longer row forms a batch alone", le=2**30)
    precision: Literal["fp32", "bf16", "fp16", "auto"] = key("fp32", "auto: the fastest that the hardware supports")


class MinimalPairsConfig(ZeroShotConfig):
    """Accuracy on minimal pairs by pseudo-log-likelihood."""

    kind: Literal["minimal-pairs"] = "minimal-pairs"
    name: str = key("minimal-pairs", "name of the protocol")
    score: Literal["pll", "within-word-l2r"] = key(
        "pll", "pseudo-log-likelihood; within-word-l2r also masks the rest of the word"
    )


class MaskedWordsConfig(ZeroShotConfig):
    """Bits per character of masked words of a text."""

    kind: Literal["masked-words"] = "masked-words"
    name: str = key("masked-words", "name of the protocol")
    characters: PositiveInt = key(
        1_000_000, "approximate number of characters to score, from the head of each file by size", le=10**12
    )
    text_column: str = key("text", "column of .jsonl and .parquet files")
    text_suffixes: list[TextSuffix] = key(list, "suffixes of more files to read like .txt, such as .py")
    window_characters: PositiveInt = key(320, "characters of a window, in whole words", le=10**6)
    mlm_probability: Share = key(0.15, "share of words to mask")
    unknown_bits_per_byte: NonNegativeFloat = key(8.0, "cost of UTF-8 text that becomes [UNK] or no token", le=1e6)
    bootstrap: int = key(1000, "resamples of the windows for the confidence interval", ge=2, le=10**6)


PROTOCOLS: dict[str, type[Settings]] = {
    "fine-tuning": ProtocolConfig,
    "own-data": OwnDataConfig,
    "similarity": SimilarityConfig,
    "minimal-pairs": MinimalPairsConfig,
    "masked-words": MaskedWordsConfig,
}
