"""What a strategy of scaling out decides about a run. The base class is one device, and DDP as Composer does it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.core import Algorithm, Precision, State
from composer.loggers import Logger
from composer.utils.checkpoint import save_checkpoint

from cram_composer.config.schema.algorithms import AlgorithmsConfig
from cram_composer.config.schema.run import RunConfig
from cram_composer.device import DeviceChoice
from cram_composer.models.training_model import MaskedLMTrainingModel
from cram_composer.optim.parameters import optimized_gradients


class Strategy:
    """One device, or DDP: every rank holds all weights, and all of the optimizer.

    Calls come in this order: `precision` and `compile_mode` before the model is made, `prepare_model` when it is,
    `trainer_context` around Composer's Trainer, `after_init` when that is there and has loaded its checkpoint. What is
    called while training is collective: all ranks call it at the same step.

    Attributes:
        name: as the run says it.
        is_replicated: every rank holds all weights, so that the model can be exported as it is.
        skips_steps: a step whose gradients are not finite is left out by what takes the steps, see `on_step_skipped`.
    """

    is_replicated = True
    skips_steps = False

    def __init__(self, config: RunConfig, device: DeviceChoice, world_size: int) -> None:
        self.config = config
        self.device = device
        self.world_size = world_size

    @property
    def name(self) -> str:
        """How devices train together, for the run's first line and its record."""
        return "one device" if self.world_size == 1 else f"ddp on {self.world_size} devices"

    def precision(self) -> tuple[Precision, torch.dtype | None]:
        """Composer's precision, and the dtype that the model's forward autocasts to by itself."""
        return self.device.composer_precision, self.device.autocast_dtype

    def compile_mode(self) -> tuple[str, str | None]:
        """The mode of `compile_model`, and the reason where it is not the one that was asked for."""
        return self.device.compile, None

    def algorithms(self) -> AlgorithmsConfig:
        """The algorithms of the run, without those that the strategy does itself."""
        return self.config.algorithms

    def pre_step_algorithms(self) -> list[Algorithm]:
        """Algorithms that complete the gradients of a step, before anything looks at them."""
        return []

    def prepare_model(self, model: MaskedLMTrainingModel) -> None:
        """Prepare a model on which nothing is sharded yet."""

    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments of Composer's Trainer."""
        # Layers that are left out or frozen are the same ones in all microbatches of a step: one sum is enough.
        return {"ddp_sync_strategy": self.config.scaleout.ddp.sync_strategy}

    @contextlib.contextmanager
    def trainer_context(self) -> Iterator[None]:
        """Around the construction of the Trainer, which loads a checkpoint and wraps the model."""
        yield

    def after_init(self, trainer: Trainer) -> None:
        """Wrap what the Trainer has not."""

    def on_step_skipped(self, call: Callable[[], None]) -> None:
        """Have `call` called on all ranks when a step was left out because of its gradients; with `skips_steps`."""

    def save(self, state: State, path: Path) -> None:
        """Write a complete checkpoint, from which a run can go on with any number of ranks. Collective."""
        save_checkpoint(state, str(path))

    def restore(self, state: State, loaded: dict[str, Any], logger: Logger) -> None:
        """Put a checkpoint's weights and optimizer into a running `state`. Collective."""
        state.load_model_state({"model": loaded["model"]}, logger, strict=True)
        state.load_optim_state(loaded)

    def gradients(self, state: State) -> list[torch.Tensor]:
        """This rank's part of the gradients of a step that is about to be taken."""
        return optimized_gradients(state.optimizers)
