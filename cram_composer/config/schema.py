"""The schema of a run: every key a run YAML, a recipe or the command line may set, with its type and default.

Values that are None by default are decided at run time (and the decision is in the run record) or switch a part off.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cram_composer.config.fields import choice, number


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
class ModelConfig:
    """The encoder; `architecture: hf` takes any `transformers` masked LM instead, of these sizes, the rest its own."""

    architecture: str = choice("crambert", "hf")
    hidden_size: int = number(768, 1)
    num_hidden_layers: int = number(16, 1)
    num_attention_heads: int = number(12, 1)
    intermediate_size: int = number(3072, 1)  # width of the up-projection; a gated FFN halves it
    norm: str = choice("layernorm")
    norm_eps: float = 1e-12
    ffn: str = choice("gelu_glu", "gelu")
    positions: str = choice("scaled-sinusoidal", "sinusoidal", "learned")
    max_position_embeddings: int = number(512, 1)
    attention_bias: bool = False
    mlp_bias: bool = False
    initializer_range: float = 0.02
    document_masking: bool = False  # in pretraining, attention does not cross from one document of a row to another
    hf_name: str | None = None  # model type for `architecture: hf`: bert, modernbert, ...
    hf_overrides: dict[str, Any] = field(default_factory=dict)  # values of that model's own config class


@dataclass
class ObjectiveConfig:
    """Masked-language modelling (Devlin et al. 2018, section 3.1)."""

    mlm_probability: float = number(0.25, 0.01, 0.9)
    final_mlm_probability: float | None = number(
        None, 0.01, 0.9
    )  # masking rate at the end of the budget, reached linearly
    masking: str = choice("80-10-10", "all-mask")  # 80 % [MASK], 10 % a random token, 10 % kept; or all [MASK]
    positions: str = choice("fixed", "bernoulli")  # fixed: the same count in every row


@dataclass
class OptimizerConfig:
    """The optimizer; `lr` is the peak the schedule multiplies."""

    name: str = choice("adamw")
    lr: float = number(1e-3, 0.0)
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = number(1e-12, 0.0)
    weight_decay: float = number(0.01, 0.0)


@dataclass
class ScheduleConfig:
    """Learning rate as a pure function of budget progress; a key its schedule does not read is refused."""

    name: str = choice("triangle", "one-cycle", "linear", "cosine", "constant", "inverse-sqrt", "wsd")
    start: float | None = number(None, 0.0, 1.0)  # factor at progress 0
    peak_at: float | None = number(None, 0.0, 1.0)  # progress of the peak
    warmup: float | None = number(None, 0.0, 1.0)  # share of the budget spent rising from `start` to the peak
    decay: float | None = number(None, 0.0, 1.0)  # share of the budget spent falling to `final`
    final: float | None = number(None, 0.0, 1.0)  # factor at progress 1


@dataclass
class KillConfig:
    """Give up early on a run that will not get there."""

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
    nonfinite: str = choice("skip-step", "stop", "rollback")
    max_nonfinite: int = number(20, 1)  # this many in a row end the run whatever the policy
    kill: KillConfig | None = None


@dataclass
class GradientClippingConfig:
    """Composer's GradientClipping."""

    clipping_type: str = choice("norm", "value", "adaptive")
    clipping_threshold: float = number(0.5, 1e-12)


@dataclass
class SeqLengthWarmupConfig:
    """Short rows first, over the first `duration` of the budget."""

    duration: float = number(0.3, 0.0, 1.0)
    min_seq_length: int = number(32, 1)
    max_seq_length: int | None = number(None, 1)  # default: the data's
    step_size: int = number(32, 1)
    truncate: bool = False  # False reshapes a row into several, losing no token; True keeps each row's head


@dataclass
class BatchSizeRampConfig:
    """Linear growth of the batch in whole microbatches."""

    initial_batch_size: int | None = number(None, 1)  # rows over all devices; default: one microbatch per device
    until: float = number(0.6, 0.0, 1.0)  # progress at which `train.batch_size` is reached


@dataclass
class EmaConfig:
    """Exponential moving average of the weights, used for evaluation and export."""

    half_life: float = number(0.01, 1e-9, 1.0)  # share of the budget
    update_interval: int = number(1, 1)  # optimizer steps


@dataclass
class FusedLayerNormConfig:
    """LayerNorm by a fused CUDA kernel; has no settings."""


@dataclass
class AlgorithmsConfig:
    """Algorithms that are switched on; null is off."""

    gradient_clipping: GradientClippingConfig | None = None
    seq_length_warmup: SeqLengthWarmupConfig | None = None
    batch_size_ramp: BatchSizeRampConfig | None = None
    ema: EmaConfig | None = None
    fused_layernorm: FusedLayerNormConfig | None = None


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
    algorithms: AlgorithmsConfig = field(default_factory=AlgorithmsConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
