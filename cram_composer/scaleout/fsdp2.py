"""FSDP2: torch's `fully_shard`, layer by layer, as Composer applies it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from composer import Trainer
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils.parallelism import FSDP2Config, ParallelismConfig
from torch.distributed.tensor import DTensor

from cram_composer.models.compilation import encoder_layers
from cram_composer.models.training_model import MaskedLMTrainingModel
from cram_composer.scaleout.strategy import Strategy


class Fsdp2(Strategy):
    """Shard weights, gradients and optimizer over all ranks; gather each encoder layer when it runs.

    Checkpoints are gathered into the same file as without shards.
    """

    is_replicated = False

    @property
    def name(self) -> str:
        return f"fsdp2 on {self.world_size} devices"

    def compile_mode(self) -> tuple[str, str | None]:
        if self.device.compile == "full":
            return "regional", "one graph of the whole model cannot gather layers"
        return self.device.compile, None

    def prepare_model(self, model: MaskedLMTrainingModel) -> None:
        # The tied embedding and decoder and the norms around the layers form the outermost group. The layers are looked
        # up when Composer shards, after algorithms have wrapped them.
        network: Any = model.model
        network.fsdp_wrap_fn = lambda module: any(module is layer for layer in encoder_layers(network))
        # Precompilation differentiates with respect to the weights, but sharded layers compute with gathered copies.
        model.precompiles = False

    def trainer_arguments(self) -> dict[str, Any]:
        settings = self.config.scaleout.fsdp2
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="FSDP2 Config/APIs are experimental")
            fsdp2 = FSDP2Config(
                reshard_after_forward=settings.reshard_after_forward,
                mixed_precision=settings.mixed_precision,
                state_dict_type="full",
            )
        return {"parallelism_config": ParallelismConfig(fsdp2=fsdp2)}

    @contextlib.contextmanager
    def trainer_context(self) -> Iterator[None]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="FSDP2 Config/APIs are experimental")
            yield

    def pre_step_algorithms(self) -> list[Algorithm]:
        return [_MeanOverRanks(self)] if self.device.name == "cpu" else []

    def after_init(self, trainer: Trainer) -> None:
        for optimizer in trainer.state.optimizers:
            if hasattr(optimizer, "can_use_foreach"):  # pytorch-optimizer's fused loops mix in plain tensors
                for group in optimizer.param_groups:
                    group["foreach"] = False

    def gradients(self, state: State) -> list[torch.Tensor]:
        gradients = super().gradients(state)
        return [grad.to_local() if isinstance(grad, DTensor) else grad for grad in gradients]


class _MeanOverRanks(Algorithm):
    """Divide gradients by the number of ranks: FSDP2 requests a mean, but gloo of older torch sums.

    Adam is invariant to the scale of gradients; clipping is not.
    """

    def __init__(self, strategy: Fsdp2) -> None:
        self._strategy = strategy
        self._divisor: float | None = None

    def match(self, event: Event, state: State) -> bool:
        return event == Event.AFTER_TRAIN_BATCH

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if self._divisor is None:
            self._divisor = _mean_of_ones(self._strategy.world_size)
        if self._divisor != 1.0:
            torch._foreach_div_(self._strategy.gradients(state), self._divisor)


def _mean_of_ones(world_size: int) -> float:
    """Request a mean as FSDP2 does: 1 if gloo computes it, the number of ranks if it sums, as in torch 2.7."""
    mean = torch.empty(1)
    ones = torch.ones(world_size)
    torch.distributed.reduce_scatter_tensor(mean, ones, op=torch.distributed.ReduceOp.AVG)
    return float(mean)
