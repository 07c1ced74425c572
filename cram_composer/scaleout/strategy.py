"""The interface of a scale-out strategy; the base class implements a single device and Composer's DDP."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from composer import Trainer
from composer.core import Algorithm, Precision, State
from composer.loggers import Logger
from composer.utils import reproducibility

from cram_composer.config.schema.algorithms import AlgorithmsConfig
from cram_composer.config.schema.run import RunConfig
from cram_composer.device import DeviceChoice
from cram_composer.models.training_model import MaskedLMTrainingModel
from cram_composer.optim.parameters import optimized_gradients


class Strategy:
    """A single device, or DDP: every rank holds all weights and the whole optimizer.

    Training calls `precision` and `compile_mode` before it builds the model, `prepare_model` after that,
    `trainer_context` around the construction of the Trainer, and `after_init` once the Trainer has loaded its
    checkpoint. Calls during training are collective: all ranks make them at the same step.

    Attributes:
        is_replicated: every rank holds all weights, so the model can be exported without a checkpoint.
        skips_steps: the strategy skips steps whose gradients are not finite, see `on_step_skipped`.
    """

    is_replicated = True
    skips_steps = False

    def __init__(self, config: RunConfig, device: DeviceChoice, world_size: int) -> None:
        self.config = config
        self.device = device
        self.world_size = world_size

    @property
    def name(self) -> str:
        """Description of the strategy, for the first line of a run and its record."""
        return "one device" if self.world_size == 1 else f"ddp on {self.world_size} devices"

    def precision(self) -> tuple[Precision, torch.dtype | None]:
        """Return Composer's precision and the autocast dtype of the model's own forward."""
        return self.device.composer_precision, self.device.autocast_dtype

    def compile_mode(self) -> tuple[str, str | None]:
        """Return the mode of `compile_model`, and the reason if it differs from the configured one."""
        return self.device.compile, None

    def algorithms(self) -> AlgorithmsConfig:
        """Return the configured algorithms, without those that the strategy replaces."""
        return self.config.algorithms

    def pre_step_algorithms(self) -> list[Algorithm]:
        """Return algorithms that complete the gradients of a step before other algorithms read them."""
        return []

    def prepare_model(self, model: MaskedLMTrainingModel) -> None:
        """Prepare a model that is not sharded yet."""

    def trainer_arguments(self) -> dict[str, Any]:
        """Return arguments of Composer's Trainer."""
        # Skipped and frozen layers are the same in all microbatches of a step, so one reduction is enough.
        return {"ddp_sync_strategy": self.config.scaleout.ddp.sync_strategy}

    @contextlib.contextmanager
    def trainer_context(self) -> Iterator[None]:
        """Return the context for constructing the Trainer, which wraps the model and loads a checkpoint."""
        yield

    def after_init(self, trainer: Trainer) -> None:
        """Finish wrapping the model and optimizer."""

    def on_step_skipped(self, callback: Callable[[], None]) -> None:
        """Register a function to call on all ranks after a skipped step, if `skips_steps` is True."""

    def checkpoint(self, state: State) -> dict[str, Any]:
        """Return the contents of a checkpoint, from which any number of ranks can resume. Collective.

        They are complete on rank 0; their tensors may be those that training changes.
        """
        return {"state": state.state_dict(), "rng": reproducibility.get_rng_state()}

    def restore(self, state: State, loaded: dict[str, Any], logger: Logger) -> None:
        """Restore weights and optimizer of a running `state` from a checkpoint. Collective."""
        state.load_model_state({"model": loaded["model"]}, logger, strict=True)
        state.load_optim_state(loaded)

    def gradients(self, state: State) -> list[torch.Tensor]:
        """Return this rank's part of the gradients of the current step."""
        return optimized_gradients(state.optimizers)
