"""The schema of an evaluation protocol, `yamls/eval/*.yaml`: how a model is fine-tuned on every task and scored."""

from __future__ import annotations

from dataclasses import dataclass, field

from cram_composer.config.fields import choice, number


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
