"""DeepSpeed's ZeRO under Composer's Trainer: an engine in DDP's place, and an optimizer whose step is the engine's.

Composer runs the loop, the events and the microbatches as always. The engine (Rajbhandari et al. 2020, arXiv
1910.02054) takes the plain optimizer over, with what a checkpoint has put into it, and shards it: from then on every
parameter group is one flat tensor, of which each rank steps its part.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from composer import Trainer
from composer.core import Precision, State
from composer.loggers import Logger
from composer.utils.checkpoint import save_checkpoint
from torch import nn

from cram_composer.config.schema.algorithms import AlgorithmsConfig
from cram_composer.config.validation.deepspeed import engine_config, zero_stage
from cram_composer.errors import CramError
from cram_composer.models.training_model import MaskedLMTrainingModel
from cram_composer.scaleout.strategy import Strategy
from cram_composer.scaleout.zero_state import ZeroState

# A fourth of a second of every start would be DeepSpeed's own remarks on its defaults.
_QUIET = logging.ERROR


class EngineOptimizer(torch.optim.Optimizer):
    """What Composer sees of the optimizer that an engine has taken over.

    `param_groups` are the live ones, so that a learning rate set there is the one that is used. Gradients are cleared
    by the engine, when it has used them.
    """

    def __init__(self, engine: Any, optimizer: torch.optim.Optimizer) -> None:
        # Not Optimizer.__init__, which would make groups of its own.
        self._engine = engine
        self._optimizer = optimizer
        self.skipped: Callable[[], None] = lambda: None

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self._optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self._optimizer.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """All microbatches, then one step of the engine; it leaves out a step whose gradients are not finite."""
        loss = closure() if closure is not None else None
        self._engine.step()
        if not self._engine.was_step_applied():
            self.skipped()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing: the engine has cleared what it used, and Composer calls this before the first microbatch."""


class DeepSpeedZero(Strategy):
    """ZeRO by stage: 1 shards the optimizer, 2 gradients too, 3 weights too."""

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
        # The engine switches off an autocast around it. The model's own, inside, is the one that DDP has.
        dtype = torch.bfloat16 if self.device.precision == "bf16" else None
        return Precision.FP32, dtype

    def compile_mode(self) -> tuple[str, str | None]:
        mode = self.device.compile
        if mode != "off" and zero_stage(self.config.scaleout) == 3:
            return "off", "ZeRO-3 gathers weights in hooks of every module, which a graph cannot hold"
        if mode == "full":
            return "regional", "the engine's hooks are around the model"
        return mode, None

    def algorithms(self) -> AlgorithmsConfig:
        # Clipping is the engine's, which alone sees the norm of all gradients.
        return self.config.algorithms.model_copy(update={"gradient_clipping": None})

    @contextlib.contextmanager
    def trainer_context(self) -> Iterator[None]:
        """The Trainer would wrap the model with DDP; it is left as it is until `after_init`."""
        with mock.patch("composer.trainer.trainer.prepare_ddp_module", lambda model, find_unused: model):
            yield

    def after_init(self, trainer: Trainer) -> None:
        state = trainer.state
        (optimizer,) = state.optimizers
        names = {p: name for name, p in state.model.named_parameters()}
        groups = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
        loaded = {names[p]: dict(held) for p, held in optimizer.state.items()}
        optimizer.state.clear()
        self._engine = _engine(state.model, optimizer, engine_config(self.config, self.world_size), self.device.name)
        self._state = ZeroState(self._engine, optimizer, groups)
        self._state.set_optimizer(loaded)
        self._optimizer = EngineOptimizer(self._engine, optimizer)
        state.model = self._engine
        state.optimizers = self._optimizer
        # What is sharded is gathered by name, see `save`.
        state.serialized_attributes = [
            name for name in state.serialized_attributes if name not in ("model", "optimizers")
        ]

    def on_step_skipped(self, call: Callable[[], None]) -> None:
        assert self._optimizer is not None
        self._optimizer.skipped = call

    def save(self, state: State, path: Path) -> None:
        assert self._state is not None
        gathered = {"model": self._state.weights(), "optimizers": self._state.optimizer()}
        save_checkpoint(state, str(path), ignore_keys=lambda contents: contents["state"].update(gathered))

    def restore(self, state: State, loaded: dict[str, Any], logger: Logger) -> None:
        assert self._state is not None
        self._state.set_weights(loaded["model"])
        (optimizer,) = loaded["optimizers"].values()
        self._state.set_optimizer(optimizer["state"])

    def gradients(self, state: State) -> list[torch.Tensor]:
        # The engine looks at them when it has summed them: it needs their norm in any case.
        return []

    def prepare_model(self, model: MaskedLMTrainingModel) -> None:
        model.precompiles = False  # a backward of its own would reach the hooks that sum gradients


def _engine(model: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any], device: str) -> Any:
    """A DeepSpeed engine of `model` that has taken over `optimizer`. Collective."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if device == "gpu" else "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    deepspeed = importlib.import_module("deepspeed")
    logging.getLogger("DeepSpeed").setLevel(_QUIET)
    # On a CPU it would compile an all-reduce of its own, which takes a minute and a half; gloo's is there.
    with mock.patch.dict("deepspeed.ops.__compatible_ops__", {"deepspeed_shm_comm": False}):
        try:
            engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
        except ValueError as error:  # pydantic's: a key or a value that DeepSpeed does not know
            said = " ".join(str(error).split()).partition(" For further information")[0]
            raise CramError(f"scaleout.deepspeed: DeepSpeed does not take it: {said[:300]}") from None
    return engine
