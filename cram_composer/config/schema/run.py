"""The schema of a run: every key a run YAML, a recipe or the command line may set, with its type and default.

Values that are None by default are decided at run time (and the decision is in the run record) or switch a part off.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cram_composer.config.schema.algorithms import AlgorithmsConfig
from cram_composer.config.schema.fields import choice, number
from cram_composer.config.schema.model import ModelConfig
from cram_composer.config.schema.objective import ObjectiveConfig
from cram_composer.config.schema.optimizer import OptimizerConfig, ScheduleConfig
from cram_composer.config.schema.scaleout import ScaleoutConfig


@dataclass
class BudgetConfig:
    """What may be spent. `budget: 24h` is short for `budget: {wall: 24h}`; the limit reached first ends the run."""

    wall: str | None = None  # wall-clock of the training loop: 24h, 90m, 600s, 1d, 1h30m
    device_hours: float | None = number(None, 1e-6)  # wall-clock times devices; 24 gives 3 h on 8 devices
    tokens: float | None = number(None, 1)  # tokens fed to the model, summed over devices
    steps: int | None = number(None, 1)  # optimizer steps
    replay: str | None = None  # a run folder whose trace is followed step by step, without a clock


@dataclass
class StreamWeightConfig:
    """How much of a stream an epoch holds; one of the three, as in Streaming's `Stream`."""

    proportion: float | None = number(None, 0.0)  # share of the epoch, in proportion to those of the other streams
    repeat: float | None = number(None, 0.0)  # times its own size
    choose: int | None = number(None, 1)  # blocks


@dataclass
class CurriculumPointConfig:
    """Shares of the streams at a point of the budget; between points they change linearly."""

    at: float = number(0.0, 0.0, 1.0)  # progress
    proportions: dict[str, float] = field(default_factory=dict)


@dataclass
class DataConfig:
    """Where the shards are (docs of `cram data build` say what they hold)."""

    local: str | None = None  # folder of a built data set, or the cache of `remote`; default: the output of `build`
    remote: str | None = None  # the same folder in object storage: s3://bucket/path, gs://, oci://, azure://
    mirror: str | None = None  # another copy of `remote`, for what cannot be had there
    cache_limit: str | None = None  # disk that shards of `remote` may take, such as 50gb; the oldest go first
    # A file of `remote` that cannot be had for this long, retries included, ends the run; every try gets 10 s at least.
    deadline: str = "2m"
    prefetch: int = number(64, 0)  # blocks that are asked for ahead of the one in use, per device
    order: str = choice("auto", "shuffled", "stored")  # auto: stored if the build put the rows in an order
    mixture: dict[str, StreamWeightConfig] = field(default_factory=dict)  # by stream; default: all of each
    curriculum: list[CurriculumPointConfig] = field(default_factory=list)  # a mixture that changes over the budget
    build: str | None = None  # data YAML that makes it
    build_if_missing: bool = False  # run `build` before the clock starts when the data set is not there
    num_workers: int = number(1, 0)  # processes per device that read and decompress shards
    timeout: str = "5m"  # reading processes that deliver nothing for this long end the run
    verify: str = choice(
        "full", "size"
    )  # before the clock starts: "full" hashes every local shard, "size" compares sizes


@dataclass
class EarlyStopConfig:
    """Stop a run early whose loss shows that it will not converge."""

    loss_above: float = 7.5  # nats, smoothed training loss
    at: float = number(0.1, 0.0, 1.0)  # progress at which it is looked at


@dataclass
class TrainConfig:
    """One optimizer step and how it runs."""

    batch_size: int = number(8192, 1)  # rows per optimizer step over all devices, a whole number of microbatches each
    device_train_microbatch_size: int = number(128, 1)
    precision: str = choice("auto", "bf16", "fp16", "fp32")
    compile: str = choice("auto", "regional", "full", "off")  # regional: layer by layer
    threads: int | None = number(None, 1)  # CPU threads per process; default: the cores shared out among local ranks
    on_nonfinite: str = choice("skip-step", "stop", "rollback")
    max_nonfinite: int = number(20, 1)  # this many in a row end the run whatever the policy
    early_stop: EarlyStopConfig | None = None


@dataclass
class EvalConfig:
    """Held-out loss at 15 % all-[MASK], the same rows and masks every time."""

    interval: float = number(0.1, 0.0, 1.0)  # progress between evaluations in the loop (their time counts); 0 for none
    rows: int = number(512, 1)  # rows of the validation split used in the loop
    final_rows: int = number(4096, 1)  # rows of the final evaluation, outside the budget
    batch_size: int = number(64, 1)


@dataclass
class CheckpointConfig:
    """Rolling checkpoints by wall-clock."""

    interval: str | None = None  # default: 10m, or a tenth of a wall-clock budget shorter than 100 minutes
    keep: int = number(2, 1)
    # Progress of the budget at which one is kept for good, such as [0.125, 0.25, 0.5]; see `cram branch`.
    branch_at: list[float] = field(default_factory=list)


@dataclass
class LoggingConfig:
    """Where metrics go besides trace.jsonl and metrics.jsonl, which are always written."""

    progress_bar: bool = True
    tensorboard: bool = True
    wandb: dict[str, Any] | None = None  # arguments of Composer's WandBLogger
    mlflow: dict[str, Any] | None = None  # arguments of Composer's MLFlowLogger


@dataclass
class ExportConfig:
    """The Hugging Face folder made at the end, and the sentences whose masks it fills."""

    enabled: bool = True
    sentences: list[str] = field(
        default_factory=lambda: [
            "The capital of France is [MASK].",
            "She opened the [MASK] and looked outside.",
            "The president addressed the [MASK] of the United States.",
            "The river flows into the [MASK].",
            "He was born in [MASK] and became a famous writer.",
        ]
    )


@dataclass
class RunConfig:
    """A whole run."""

    run_name: str | None = None  # folder under runs_dir; default: the YAML's name
    runs_dir: str = "runs"
    runs_remote: str | None = (
        None  # copies of checkpoints, record and export: s3://bucket/path, gs://, oci://, azure://
    )
    recipes: list[str] = field(default_factory=list)
    seed: int = 17
    device: str = choice("auto", "cpu", "cuda")
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    scaleout: ScaleoutConfig = field(default_factory=ScaleoutConfig)
    algorithms: AlgorithmsConfig = field(default_factory=AlgorithmsConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
