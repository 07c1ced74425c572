"""The schema of a run: every key that a run YAML, a recipe or the command line may set."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from cram_composer.config.schema.algorithms import AlgorithmsConfig
from cram_composer.config.schema.base import Duration, FilePath, Name, Place, Settings, Share, default_of, key
from cram_composer.config.schema.data import DataConfig
from cram_composer.config.schema.model import ModelConfig
from cram_composer.config.schema.objective import MaskedLMConfig, ObjectiveConfig
from cram_composer.config.schema.optimizer import AdamWConfig, OptimizerConfig
from cram_composer.config.schema.scaleout import ScaleoutConfig
from cram_composer.config.schema.schedule import ScheduleConfig, TriangleConfig

CLOCKS = ("wall", "device_hours", "replay")  # setting one by a dotted key unsets the others


class BudgetConfig(Settings):
    """Limits of a run; the first one reached ends it. `budget: 24h` is short for `budget: {wall: 24h}`.

    A later `budget={...}` replaces all limits of the YAML; `budget.steps=N` adds one to them.
    """

    wall: Duration | None = key(None, "wall-clock of the training loop: 24h, 90m, 600s, 1d, 1h30m")
    device_hours: float | None = key(None, "wall-clock times devices; 24 is 3 h on 8 devices", ge=1e-6, le=1e6)
    tokens: float | None = key(None, "tokens fed to the model, summed over devices", ge=1, le=1e18)
    steps: PositiveInt | None = key(None, "optimizer steps", le=10**12)
    epochs: float | None = key(None, "passes over the training rows, 0.5 for half of them", ge=1e-9, le=1e6)
    replay: FilePath | None = key(None, "run folder whose trace to follow step by step, without a clock")

    @model_validator(mode="after")
    def _check_replay(self) -> BudgetConfig:
        others = [name for name, limit in self if limit is not None and name != "replay"]
        if self.replay is not None and others:
            raise ValueError(f"replay: follows its trace to the end, without other limits; remove {', '.join(others)}")
        return self


class EarlyStopConfig(Settings):
    """Stop a run that does not converge, or no longer improves; it is evaluated and exported as usual."""

    loss_above: float | None = key(
        None, "mean training loss of up to 100 steps at progress `at`, nats; null: not checked", le=1e6
    )
    at: Share = key(0.1, "progress at which the training loss is checked, after at least ten steps")
    patience: PositiveInt | None = key(
        None, "in-loop evaluations without a lower held-out loss that end the run; null: any number", le=10**6
    )
    min_delta: float = key(0.0, "nats by which the held-out loss must fall to count as lower", ge=0.0, le=1e6)

    @model_validator(mode="after")
    def _check_condition(self) -> EarlyStopConfig:
        if self.loss_above is None and self.patience is None:
            raise ValueError("has no condition; set patience, loss_above or both")
        for name, condition in (("at", self.loss_above), ("min_delta", self.patience)):
            # Not model_fields_set: the configuration of a record sets every key.
            if condition is None and getattr(self, name) != type(self).model_fields[name].default:
                other = "loss_above" if name == "at" else "patience"
                raise ValueError(f"{name}: has no effect without {other}; set {other} or remove {name}")
        return self


class TrainConfig(Settings):
    """One optimizer step and how it is computed."""

    batch_size: PositiveInt = key(8192, "rows per optimizer step over all devices, in whole microbatches", le=2**20)
    device_train_microbatch_size: Annotated[int, Field(ge=1, le=2**16)] | Literal["auto"] = key(
        128,
        "rows per forward pass and device; auto: the largest power of two that fits into memory, tried before the "
        "clock starts",
        free=True,
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = key("auto", "auto: the fastest that the hardware supports")
    compile: Literal["auto", "regional", "full", "off"] = key("auto", "regional compiles layer by layer", free=True)
    threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = key(
        "auto",
        "CPU threads per process; auto: cores / local ranks, and fewer while other processes keep cores busy, if one "
        "process trains on a CPU against the clock",
        free=True,
    )
    on_nonfinite: Literal["skip-step", "stop", "rollback"] = key(
        "skip-step", "reaction to a loss or gradient that is not finite"
    )
    max_nonfinite: PositiveInt = key(20, "consecutive non-finite steps that end the run under any policy", le=10**9)
    early_stop: EarlyStopConfig | None = key(None, "end a run before its budget", free=True)
    profile: PositiveInt | None = key(
        None, "steps to train under torch's profiler after the budget; they change no result", le=1000, free=True
    )

    @property
    def microbatch(self) -> int:
        """`device_train_microbatch_size` of a run for which it has been chosen."""
        assert self.device_train_microbatch_size != "auto"
        return self.device_train_microbatch_size

    @field_validator("compile", mode="before")
    @classmethod
    def _from_boolean(cls, value: Any) -> Any:
        """Accept `off`, which YAML reads as false."""
        return ("auto" if value else "off") if isinstance(value, bool) else value


class EvalConfig(Settings):
    """Held-out loss at 15 % all-[MASK], the same rows and masks every time."""

    interval: Share = key(0.1, "progress between evaluations during training, which count toward the budget; 0: none")
    rows: PositiveInt = key(512, "validation rows of an evaluation during training", le=10**9)
    final_rows: PositiveInt = key(4096, "validation rows of the final evaluation, outside the budget", le=10**9)
    batch_size: PositiveInt = key(64, "rows per batch and device", le=2**16, free=True)


class CheckpointConfig(Settings):
    """Rolling checkpoints by wall-clock."""

    interval: Duration | None = key(
        None, "time between checkpoints; null: 10m, or a tenth of a budget below 100 minutes"
    )
    keep: PositiveInt = key(2, "number of checkpoints to keep", le=10**6)
    branch_at: list[float] = key(list, "progress at which to keep a checkpoint for `cram branch`, such as [0.25, 0.5]")

    @field_validator("branch_at")
    @classmethod
    def _check_progress(cls, points: list[float]) -> list[float]:
        if not all(0.0 < point < 1.0 for point in points):
            raise ValueError(f"must be between 0 and 1, exclusive, got {points}")
        return points


class LoggingConfig(Settings):
    """Loggers besides trace.jsonl and metrics.jsonl, which are always written."""

    progress_bar: bool = key(True, "progress bar on the console")
    tensorboard: bool = key(True, "TensorBoard, at most one step per second")
    wandb: dict[str, Any] | None = key(None, "arguments of Composer's WandBLogger")
    mlflow: dict[str, Any] | None = key(None, "arguments of Composer's MLFlowLogger")


class ExportConfig(Settings):
    """The Hugging Face folder written at the end."""

    enabled: bool = key(True, "write the folder")
    sentences: list[str] = key(
        [
            "The capital of France is [MASK].",
            "She opened the [MASK] and looked outside.",
            "The president addressed the [MASK] of the United States.",
            "The river flows into the [MASK].",
            "He was born in [MASK] and became a famous writer.",
        ],
        "sentences with masks for the finished model to fill in",
    )


class SeedsConfig(Settings):
    """Seeds of parts of a run, to tell apart what makes runs of different seeds differ. null: the run's seed."""

    weights: int | None = key(None, "initial weights", ge=0, lt=2**32)
    order: int | None = key(None, "order of the rows", ge=0, lt=2**32)
    masks: int | None = key(None, "masks", ge=0, lt=2**32)


class RunConfig(Settings):
    """A training run."""

    run_name: Name | None = key(None, "folder under runs_dir; null: name of the YAML", free=True)
    runs_dir: FilePath = key("runs", "folder that holds the run folders", free=True)
    runs_remote: Place | None = key(
        None,
        "object storage for copies of checkpoints, record and export: s3://bucket/path, gs://, azure://",
        free=True,
    )
    notify: str | None = key(
        None,
        "shell command to run when the run ends, fails or stalls; it finds CRAM_RUN, CRAM_STATUS and CRAM_REASON",
        free=True,
    )
    recipes: list[str] = key(list, "names of recipes, a preset first")
    init_from: FilePath | None = key(
        None, "run, export or Hugging Face folder whose weights to start from; null: random weights"
    )
    seed: int = key(17, "seed of weights, data order, masks and dropout", ge=0, lt=2**32)
    seeds: SeedsConfig = key(SeedsConfig, "seeds of single parts")
    device: Literal["auto", "cpu", "cuda"] = key("auto", "auto: cuda if there is a GPU")
    budget: BudgetConfig = key(BudgetConfig, "limits of the run")
    data: DataConfig = key(DataConfig, "the data set")
    model: ModelConfig = key(ModelConfig, "the encoder")
    objective: ObjectiveConfig = key(MaskedLMConfig, "what is learnt from the text")
    optimizer: OptimizerConfig = key(AdamWConfig, "the optimizer")
    schedule: ScheduleConfig = key(TriangleConfig, "learning rate over the budget")
    train: TrainConfig = key(TrainConfig, "one optimizer step")
    scaleout: ScaleoutConfig = key(ScaleoutConfig, "training on several devices")
    algorithms: AlgorithmsConfig = key(AlgorithmsConfig, "algorithms that act during training")
    eval: EvalConfig = key(EvalConfig, "held-out loss")
    checkpoint: CheckpointConfig = key(CheckpointConfig, "rolling checkpoints", free=True)
    logging: LoggingConfig = key(LoggingConfig, "loggers", free=True)
    export: ExportConfig = key(ExportConfig, "Hugging Face export", free=True)

    @field_validator("objective", "optimizer", "schedule", mode="before")
    @classmethod
    def _default_name(cls, value: Any, info: Any) -> Any:
        """Give a section without a name the name of the default."""
        default = default_of(cls.model_fields[info.field_name])
        return {"name": default.name, **value} if isinstance(value, dict) else value

    def seed_of(self, part: Literal["weights", "order", "masks"]) -> int:
        """Return the seed of a part of the run."""
        own: int | None = getattr(self.seeds, part)
        return self.seed if own is None else own

    @field_validator("run_name")
    @classmethod
    def _check_run_name(cls, name: str | None) -> str | None:
        if name is not None and (not name or name.startswith(".")):
            raise ValueError(f"must name a folder below runs_dir, not hidden, got {name!r}")
        return name

    @field_validator("recipes", mode="before")
    @classmethod
    def _from_one_name(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else [] if value is None else value
