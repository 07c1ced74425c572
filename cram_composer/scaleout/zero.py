"""DeepSpeed's ZeRO under Composer's Trainer: an engine in place of DDP, and an optimizer that steps the engine.

Composer still runs the loop, the events and the microbatches. The engine (Rajbhandari et al. 2020, arXiv 1910.02054)
wraps the plain optimizer after a checkpoint is loaded, and shards it: every parameter group becomes one flat tensor, of
which each rank updates its part.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from composer import Trainer
from composer.core import Precision, State
from composer.loggers import Logger
from torch import nn

from cram_composer.config.schema.algorithms import AlgorithmsConfig
from cram_composer.config.validation.deepspeed import engine_config, zero_stage
from cram_composer.errors import CramError
from cram_composer.models.training_model import MaskedLMTrainingModel
from cram_composer.scaleout.strategy import Strategy
from cram_composer.scaleout.zero_state import ZeroState


class EngineOptimizer(torch.optim.Optimizer):
    """The adapter through which Composer steps an engine.

    `param_groups` are the engine's, so a learning rate set there takes effect. The engine clears gradients itself.
    """

    def __init__(self, engine: Any, optimizer: torch.optim.Optimizer) -> None:
        # Optimizer.__init__ is not called, because it would create param_groups.
        self._engine = engine
        self._optimizer = optimizer
        self.on_skipped: Callable[[], None] = lambda: None

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self._optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self._optimizer.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run all microbatches, then step the engine, which skips a step whose gradients are not finite."""
        loss = closure() if closure is not None else None
        self._engine.step()
        if not self._engine.was_step_applied():
            self.on_skipped()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing; the engine clears its gradients."""


class DeepSpeedZero(Strategy):
    """ZeRO. Stage 1 shards the optimizer, stage 2 also the gradients, stage 3 also the weights."""

    is_replicated = False
    skips_steps = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._engine: Any = None
        self._optimizer: EngineOptimizer | None = None
        self._state: ZeroState | None = None

    @property
    def name(self) -> str:
        version = importlib.metadata.version("deepspeed")
        return f"deepspeed {version} ZeRO-{zero_stage(self.config.scaleout)} on {self.world_size} devices"

    def precision(self) -> tuple[Precision, torch.dtype | None]:
        # The engine disables an outer autocast; the model's own autocast runs inside it and matches DDP.
        dtype = torch.bfloat16 if self.device.precision == "bf16" else None
        return Precision.FP32, dtype

    def compile_mode(self) -> tuple[str, str | None]:
        mode = self.device.compile
        if mode != "off" and zero_stage(self.config.scaleout) == 3:
            return "off", "ZeRO-3 gathers weights in module hooks, which a graph cannot contain"
        if mode == "full":
            return "regional", "DeepSpeed's hooks surround the whole model"
        return mode, None

    def algorithms(self) -> AlgorithmsConfig:
        # The engine clips, because only the engine knows the norm of all gradients.
        return self.config.algorithms.model_copy(update={"gradient_clipping": None})

    @contextlib.contextmanager
    def trainer_context(self) -> Iterator[None]:
        """Prevent the Trainer from wrapping the model with DDP."""
        with mock.patch("composer.trainer.trainer.prepare_ddp_module", lambda model, find_unused: model):
            yield

    def after_init(self, trainer: Trainer) -> None:
        state = trainer.state
        (optimizer,) = state.optimizers
        names = {p: name for name, p in state.model.named_parameters()}
        groups = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
        loaded = {names[p]: dict(values) for p, values in optimizer.state.items()}
        optimizer.state.clear()
        self._engine = _engine(state.model, optimizer, engine_config(self.config, self.world_size), self.device.name)
        self._state = ZeroState(self._engine, optimizer, groups)
        self._state.set_optimizer(loaded)
        self._optimizer = EngineOptimizer(self._engine, optimizer)
        state.model = self._engine
        state.optimizers = self._optimizer
        # `checkpoint` gathers these by name.
        state.serialized_attributes = [
            name for name in state.serialized_attributes if name not in ("model", "optimizers")
        ]

    def on_step_skipped(self, callback: Callable[[], None]) -> None:
        assert self._optimizer is not None
        self._optimizer.on_skipped = callback

    def checkpoint(self, state: State) -> dict[str, Any]:
        assert self._state is not None
        contents = super().checkpoint(state)
        contents["state"].update(model=self._state.weights(), optimizers=self._state.optimizer())
        return contents

    def restore(self, state: State, loaded: dict[str, Any], logger: Logger) -> None:
        assert self._state is not None
        self._state.set_weights(loaded["model"])
        (optimizer,) = loaded["optimizers"].values()
        self._state.set_optimizer(optimizer["state"])

    def gradients(self, state: State) -> list[torch.Tensor]:
        # The engine checks gradients after the reduction, when it computes their norm.
        return []

    def prepare_model(self, model: MaskedLMTrainingModel) -> None:
        model.precompiles = False  # its backward pass would trigger the engine's reduction hooks


def _engine(model: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any], device: str) -> Any:
    """Build a DeepSpeed engine around `model` and `optimizer`. Collective."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if device == "gpu" else "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    deepspeed = importlib.import_module("deepspeed")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # logging its defaults takes 0.25 s per start
    # Use gloo's all-reduce on a CPU: DeepSpeed would compile its own for 90 s.
    with mock.patch.dict("deepspeed.ops.__compatible_ops__", {"deepspeed_shm_comm": False}):
        try:
            engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
        except ValueError as error:  # pydantic's, for an unknown key or value
            reason = " ".join(str(error).split()).partition(" For further information")[0]
            raise CramError(f"scaleout.deepspeed: rejected by DeepSpeed: {reason[:300]}") from None
    return engine
