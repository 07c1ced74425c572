"""The parts of a training run that is built: what training drives and finishing reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from composer import Trainer

from cram_composer.algorithms.nonfinite_guard import NonFiniteGuard
from cram_composer.budget.budget import Budget
from cram_composer.budget.callback import BudgetCallback
from cram_composer.budget.early_stop import EarlyStop
from cram_composer.budget.ledger import Ledger
from cram_composer.config import Composed
from cram_composer.config.schema.run import RunConfig
from cram_composer.data.loading.prepare import PreparedDataset
from cram_composer.data.loading.stream import Batch, TrainLoader
from cram_composer.device import DeviceChoice
from cram_composer.models.training_model import MaskedLMTrainingModel
from cram_composer.runs.folder import RunFolder
from cram_composer.runs.mirror import RunMirror
from cram_composer.scaleout.strategy import Strategy
from cram_composer.train.callbacks import Heartbeat, TraceWriter
from cram_composer.train.checkpointing import RollingCheckpoints, Signals


@dataclass
class Session:
    """One process's part of a run."""

    config: RunConfig
    composed: Composed
    folder: RunFolder
    device: DeviceChoice
    data: PreparedDataset
    budget: Budget
    ledger: Ledger
    loader: TrainLoader
    model: MaskedLMTrainingModel
    strategy: Strategy
    trainer: Trainer
    clock: BudgetCallback
    trace: TraceWriter
    heartbeat: Heartbeat
    checkpoints: RollingCheckpoints
    remote: RunMirror | None  # on rank 0, with runs_remote
    guard: NonFiniteGuard
    early_stop: EarlyStop | None
    signals: Signals
    final_batches: list[Batch]
    parameters: int  # weights of the model, tied ones once
    flops_per_token: float  # at full row length, forward and backward
    attempts: list[dict[str, Any]]  # earlier starts of the run and this one, see record.json
    environment: dict[str, Any]
    branched_from: dict[str, Any] | None  # the run and the step that it goes on from, see branch.py
    energy: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)  # metrics of the final evaluation, and fills

    def kernels(self) -> dict[str, str]:
        """What computes: attention, loss and norm kernels, precision, compilation."""
        layernorm = [algorithm.kernel for algorithm in self.trainer.state.algorithms if hasattr(algorithm, "kernel")]
        return {
            "attention": self.model.attention,
            "loss": self.model.loss_kernel,
            "layernorm": layernorm[0] if layernorm else "torch",
            "precision": self.device.precision,
            "compile": self.model.compile_state,
            "scaleout": self.strategy.name,
        }
