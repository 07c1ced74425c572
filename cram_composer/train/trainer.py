"""Composer's Trainer for a run, with an engine that skips events without handlers."""

from __future__ import annotations

import datetime
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, cast
from unittest import mock

import torch
from composer import Trainer
from composer.core import Algorithm, Callback, Engine, Event, TrainerMode
from composer.core.engine import Traces
from composer.devices import Device
from composer.loggers import LoggerDestination
from composer.utils import dist, reproducibility

from cram_composer.budget.budget import Budget
from cram_composer.config.schema.run import RunConfig
from cram_composer.data.loading.data_spec import build_data_spec
from cram_composer.device import DeviceChoice
from cram_composer.evaluation.held_out import build_held_out_evaluator, due_at_progress_interval, held_out_label
from cram_composer.runs.checkpoints import SavedCheckpoint
from cram_composer.runs.folder import RunFolder
from cram_composer.train.checkpointing import tensors_only
from cram_composer.train.data import Batches
from cram_composer.train.loggers import build_loggers
from cram_composer.train.model import ModelSetup

_DEBUG = "ENGINE_DEBUG"  # Composer's variable: log one line per event and visit
# Composer requires a duration in its own units; the budget callback ends the run.
_NO_END = "1000000000ba"


def build_trainer(
    config: RunConfig,
    device: DeviceChoice,
    folder: RunFolder,
    budget: Budget,
    setup: ModelSetup,
    batches: Batches,
    algorithms: list[Algorithm],
    callbacks: list[Callback],
    checkpoint: SavedCheckpoint | None,
) -> Trainer:
    """Construct the Trainer, which wraps the model and loads `checkpoint` with its random-number state."""
    precision, _ = setup.strategy.precision()
    path = checkpoint.path if checkpoint else None
    with setup.strategy.trainer_context(), warnings.catch_warnings(), tensors_only(path):
        # The run has its own progress bar, because Composer's cannot show a wall-clock budget.
        warnings.filterwarnings("ignore", message="Specifying the ProgressBarLogger")
        trainer = LowOverheadTrainer(
            model=setup.model,
            optimizers=setup.optimizer,
            train_dataloader=build_data_spec(batches.loader),
            eval_dataloader=[
                build_held_out_evaluator(
                    held_out_label("eval", held_out.name),
                    held_out.in_loop,
                    config.eval.batch_size,
                    setup.model.get_metrics(is_train=False),
                    due_at_progress_interval(config.eval.interval, budget),
                )
                for held_out in batches.held_out
            ],
            algorithms=algorithms,
            callbacks=callbacks,
            loggers=build_loggers(config.logging, folder, budget),
            progress_bar=False,
            max_duration=_NO_END,
            device=device.composer_device,
            precision=precision,
            device_train_microbatch_size=config.train.microbatch,
            accumulate_train_batch_on_tokens=True,  # that have a label
            seed=config.seed,
            run_name=folder.path.name,
            load_path=str(path) if path else None,
            load_progress_bar=False,
            spin_dataloaders=False,  # DataPosition restores the position without reading
            **setup.strategy.trainer_arguments(),
        )
    setup.strategy.after_init(trainer)
    if checkpoint is not None and trainer._rng_state is not None:
        # Composer restores the random-number state only when it spins the dataloader.
        reproducibility.load_rng_state(trainer._rng_state)
    return trainer


class LowOverheadTrainer(Trainer):
    """Composer's Trainer with a `LowOverheadEngine`; takes the Trainer's arguments.

    A single process waits for its GPU after the backward pass only: for the losses, and in the non-finite guard.
    Composer sends counts to the device to add them over ranks, and reads them, and the loss, when the optimizer's
    kernels are queued.
    """

    def __init__(self, **arguments: Any) -> None:
        # The Trainer has no argument for its engine and constructs it by this name (Composer 0.32).
        with mock.patch("composer.trainer.trainer.Engine", LowOverheadEngine):
            super().__init__(**arguments)
        if dist.get_world_size() == 1:
            _keep_numbers_on_host(self.state.device)

    def _iter_dataloader(self, trainer_mode: TrainerMode) -> Iterator[Any]:
        """Iterate over batches."""
        if trainer_mode != TrainerMode.TRAIN or dist.get_world_size() > 1:
            yield from super()._iter_dataloader(trainer_mode)
            return
        batches = iter(cast(Any, self.state.dataloader))  # endless, so no end need be looked up on the device
        while True:
            self.engine.run_event(Event.BEFORE_DATALOADER)
            yield next(batches)

    def _train_microbatches(
        self, microbatches: Sequence[Any], total_loss_dict: dict[str, torch.Tensor], ddp_sync: bool = True
    ) -> torch.Tensor:
        """Run forward and backward passes and read the losses."""
        total = super()._train_microbatches(microbatches, total_loss_dict, ddp_sync)
        if dist.get_world_size() > 1:  # the sum over ranks follows
            return total
        for name, loss in total_loss_dict.items():
            total_loss_dict[name] = loss.cpu()
        return total_loss_dict["loss/train/total"]

    def _accumulate_time_across_ranks(
        self, num_samples: int | float, num_tokens: int, batch_time: datetime.timedelta
    ) -> tuple[int, int, datetime.timedelta]:
        """Add samples and tokens over all ranks."""
        if dist.get_world_size() > 1:
            return super()._accumulate_time_across_ranks(num_samples, num_tokens, batch_time)
        return int(num_samples), num_tokens, batch_time


def _keep_numbers_on_host(device: Device) -> None:
    """Do not move single numbers to `device`: Composer counts the labels of a step there and reads them back."""
    move = device.tensor_to_device
    device.tensor_to_device = lambda tensor: tensor if tensor.ndim == 0 else move(tensor)  # type: ignore[method-assign]


class LowOverheadEngine(Engine):
    """Dispatch each event only to the algorithms and callbacks that handle it.

    A step has seven events and six more per microbatch, most without a handler. Composer's engine visits every callback
    at each event, formats a debug line per visit and passes the loggers a list of the algorithms that ran. For a small
    model this takes about 2 % of a step (`python -m benchmarks.trainer`).

    With a profiler, with ENGINE_DEBUG set, or with `enabled` set to False, it behaves like Composer's engine.

    Attributes:
        enabled: dispatch to handlers only.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.enabled = self.state.profiler is None and _DEBUG not in os.environ
        self._callbacks: list[Callback] = []  # the callbacks that `_handlers` was made from
        self._handlers: dict[Event, list[Callback]] = {}

    def run_event(self, event: Event | str) -> Traces:
        """Run the handlers of `event` in Composer's order; return no traces."""
        event, state = Event(event), self.state
        if not self.enabled or self._is_closed or event == Event.INIT:  # Composer orders and checks INIT separately
            return super().run_event(event)
        algorithms = [algorithm for algorithm in state.algorithms if algorithm.match(event, state)]
        if algorithms:
            for algorithm in self._compile(algorithms, event):
                algorithm.apply(event, state, self.logger)
        if self._callbacks != state.callbacks:
            self._callbacks, self._handlers = list(state.callbacks), {}
        handlers = self._handlers.get(event)
        if handlers is None:
            handlers = self._handlers[event] = _handlers(self._callbacks, event.value)
        for callback in handlers:
            callback.run_event(event, state, self.logger)
        return {}


def _handlers(callbacks: list[Callback], event: str) -> list[Callback]:
    """Return the callbacks that handle `event`, loggers last so that they see the others' metrics."""
    handlers = [callback for callback in callbacks if _overrides(callback, "run_event") or _overrides(callback, event)]
    return sorted(handlers, key=lambda callback: isinstance(callback, LoggerDestination))


def _overrides(callback: Callback, method: str) -> bool:
    return getattr(type(callback), method) is not getattr(Callback, method)
