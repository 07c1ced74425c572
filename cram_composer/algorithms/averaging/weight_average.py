"""Base classes of weight averages, which replace the trained weights in evaluation and export."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch import nn

from cram_composer.budget.budget import Budget
from cram_composer.scaleout.shards import local, reshard, settle, shard_of, whole

Weights = dict[str, torch.Tensor]


class WeightAverage(Algorithm):
    """An average of the trained weights that is used for evaluation and export.

    Subclasses define the average and its updates. Tensors are this rank's part of the weights, which may be shards;
    checkpoints hold whole averages.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._parameters: dict[str, nn.Parameter] = {}
        self._trained: Weights = {}  # the trained weights while the average replaces them
        self._loaded = False  # loaded whole tensors that are not sharded yet

    @abstractmethod
    def average(self) -> Weights:
        """Return this rank's part of the current average by parameter name; empty before the first update."""

    def map_snapshots(self, change: Callable[[Weights], Weights]) -> None:
        """Apply `change` to every stored set of weights."""

    def match(self, event: Event, state: State) -> bool:
        """Match the start of the run and evaluations."""
        return event in (Event.FIT_START, Event.EVAL_START, Event.EVAL_END)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Exchange the trained weights with the average."""
        self._parameters = dict(parameters(state.model))
        if self._loaded:
            self.map_snapshots(lambda kept: {name: shard_of(self._parameters[name], t) for name, t in kept.items()})
            self._loaded = False
        if event == Event.EVAL_START:
            self.swap_in(state.model)
        elif event == Event.EVAL_END:
            self.swap_out(state.model)

    @torch.no_grad()
    def swap_in(self, model: nn.Module) -> None:
        """Replace the trained weights in the model by the average, if there is one."""
        average = self.average()
        if not average:
            return
        self._trained = {name: held.clone() for name, held in local_weights(model)}
        self._write(model, average)

    @torch.no_grad()
    def swap_out(self, model: nn.Module) -> None:
        """Restore the trained weights."""
        if self._trained:
            self._write(model, self._trained)
        self._trained = {}

    def _write(self, model: nn.Module, weights: Weights) -> None:
        for name, held in local_weights(model):
            held.copy_(weights[name])
        for _, parameter in parameters(model):
            settle(parameter)

    def gathered(self, weights: Weights) -> Weights:
        """Gather whole tensors of this rank's parts in host memory. Collective."""
        if self._loaded:
            return dict(weights)
        # One tensor at a time on the device: NCCL needs device tensors, and a whole model may not fit.
        return {
            name: whole(parameter := self._parameters[name], part.to(local(parameter).device)).cpu()
            for name, part in weights.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the average, which `cram export` reads from a checkpoint. Collective."""
        return super().state_dict() | {"average": self.gathered(self.average())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from a checkpoint; the next event shards the loaded tensors."""
        self._loaded = True


class PeriodicAverage(WeightAverage):
    """An average of snapshots taken at `start` and every `interval` after it, both in budget progress.

    Snapshots are taken between steps, the last one when the budget is spent. A step that passes several points adds one
    snapshot.
    """

    def __init__(self, budget: Budget, start: float, interval: float) -> None:
        super().__init__(budget)
        self._start = start
        self._interval = interval
        self._passed = -1  # index of the last point passed

    @abstractmethod
    def add_snapshot(self, model: nn.Module) -> None:
        """Add the weights of `model` to the average."""

    def match(self, event: Event, state: State) -> bool:
        """Match before a step, when progress and weights agree, and at the end of the run."""
        return event in (Event.BATCH_START, Event.FIT_END) or super().match(event, state)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Add a snapshot if a point has been passed, or exchange the weights with their average."""
        super().apply(event, state, logger)
        if event in (Event.BATCH_START, Event.FIT_END) and self._budget.progress >= self._start:
            point = int((self._budget.progress - self._start) / self._interval + 1e-9)
            if point > self._passed:
                self._passed = point
                self.add_snapshot(state.model)

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the last point passed."""
        return super().state_dict() | {"passed": self._passed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from a checkpoint."""
        super().load_state_dict(state)
        self._passed = state["passed"]


def parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """List parameters by name, without DDP's prefix, so that names match on any number of devices."""
    reshard(model)
    return [(name.removeprefix("module."), p) for name, p in model.named_parameters()]


def local_weights(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """List this rank's part of each parameter by name, writable and without autograd."""
    return [(name, local(p)) for name, p in parameters(model)]


def saved_average(algorithms: Iterable[tuple[str, dict[str, Any]]]) -> Weights | None:
    """Return the average among the algorithms of a checkpoint, None for a run without averaging."""
    return next((state["average"] for _, state in algorithms if state.get("average")), None)
