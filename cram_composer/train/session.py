"""The parts of a training run, assembled by `train.build`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from composer import Trainer

from cram_composer.algorithms.nonfinite_guard import NonFiniteGuard
from cram_composer.budget.budget import Budget
from cram_composer.budget.ledger import Ledger
from cram_composer.config import Composed
from cram_composer.config.schema.run import RunConfig
from cram_composer.data.loading.prepare import PreparedDataset
from cram_composer.device import DeviceChoice
from cram_composer.runs.folder import RunFolder, environment
from cram_composer.train.callbacks import RunCallbacks
from cram_composer.train.data import Batches
from cram_composer.train.model import ModelSetup


@dataclass
class Session:
    """One process's part of a run.

    Attributes:
        setup: the model, its optimizer and its strategy.
        batches: this rank's batches.
        flops_per_token: FLOPs of forward and backward at full row length.
        attempts: earlier attempts of the run and this one, as in record.json.
        changes: free keys whose values differ from the attempt before, with both values; see config/identity.py.
        branched_from: the run and step that this run was branched from, see runs/branch.py.
        init_from: the source of the initial weights, None for a run from scratch.
        microbatch: the choice of `train.device_train_microbatch_size: auto`, None if the configuration gives a number.
        energy: joules of the GPUs and their source, None if not measured.
        missing: "report" and "upload" of a finished run if they failed, with the cause.
        extra: "metrics" of the final evaluation, with "fills".
    """

    composed: Composed
    folder: RunFolder
    device: DeviceChoice
    data: PreparedDataset
    budget: Budget
    ledger: Ledger
    setup: ModelSetup
    batches: Batches
    flops_per_token: float
    guard: NonFiniteGuard
    callbacks: RunCallbacks
    trainer: Trainer
    attempts: list[dict[str, Any]]
    changes: dict[str, dict[str, Any]]
    branched_from: dict[str, Any] | None
    init_from: dict[str, Any] | None
    microbatch: dict[str, Any] | None
    environment: dict[str, Any] = field(default_factory=environment)
    energy: dict[str, Any] | None = None
    missing: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> RunConfig:
        """The validated configuration."""
        return self.composed.config

    def kernels(self) -> dict[str, str]:
        """Return the kernels of attention, loss and norms, precision, compilation and strategy, by name."""
        layernorm = [algorithm.kernel for algorithm in self.trainer.state.algorithms if hasattr(algorithm, "kernel")]
        return {
            "attention": self.setup.model.attention,
            "loss": self.setup.model.loss_kernel,
            "layernorm": layernorm[0] if layernorm else "torch",
            "precision": self.device.precision,
            "compile": self.setup.model.compile_state,
            "scaleout": self.setup.strategy.name,
        }
