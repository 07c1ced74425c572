"""What averages of the weights have in common: evaluation and export use the average, training goes on without it."""

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
    """An average of the trained weights, in whose place the model is evaluated and exported.

    A subclass says what the average is, and takes up weights at events of its own. All of it is in what this rank holds
    of the weights, which may be shards; checkpoints have whole averages.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._parameters: dict[str, nn.Parameter] = {}
        self._trained: Weights = {}  # the trained weights while the average stands in for them
        self._loaded = False  # what a checkpoint had is whole still

    @abstractmethod
    def average(self) -> Weights:
        """This rank's part of the average by parameter name, as it is now; empty where there is none yet."""

    def map_snapshots(self, change: Callable[[Weights], Weights]) -> None:
        """Replace the weights that are kept by what `change` makes of them."""

    def match(self, event: Event, state: State) -> bool:
        """At the start and around evaluation."""
        return event in (Event.FIT_START, Event.EVAL_START, Event.EVAL_END)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Exchange the trained weights and the average."""
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
        """Put the average in the model's place of the trained weights; they stay where there is none."""
        average = self.average()
        if not average:
            return
        self._trained = {name: held.clone() for name, held in weights_held(model)}
        self._put(model, average)

    @torch.no_grad()
    def swap_out(self, model: nn.Module) -> None:
        """Put the trained weights back."""
        if self._trained:
            self._put(model, self._trained)
        self._trained = {}

    def _put(self, model: nn.Module, weights: Weights) -> None:
        for name, held in weights_held(model):
            held.copy_(weights[name])
        for _, parameter in parameters(model):
            settle(parameter)

    def gathered(self, weights: Weights) -> Weights:
        """Whole tensors of this rank's parts, in the memory of the host. Collective."""
        if self._loaded:
            return dict(weights)
        # One at a time on the device: collectives of NCCL take no others, and a whole model may not fit.
        return {
            name: whole(parameter := self._parameters[name], part.to(local(parameter).device)).cpu()
            for name, part in weights.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """The average, which is what `cram export` takes from a checkpoint. Collective."""
        return super().state_dict() | {"average": self.gathered(self.average())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint; what is loaded becomes this rank's part at the next event."""
        self._loaded = True


class PeriodicAverage(WeightAverage):
    """An average of the weights at `start` and every `interval` after it, both in budget progress.

    Weights are taken up between steps, the last ones when the budget is spent. A step that passes several of these
    points counts once.
    """

    def __init__(self, budget: Budget, start: float, interval: float) -> None:
        super().__init__(budget)
        self._start = start
        self._interval = interval
        self._passed = -1  # the last of these points that was passed, counted from 0

    @abstractmethod
    def add_snapshot(self, model: nn.Module) -> None:
        """Have the weights of `model` in the average."""

    def match(self, event: Event, state: State) -> bool:
        """Before a step, when progress is that of the weights, and at the end."""
        return event in (Event.BATCH_START, Event.FIT_END) or super().match(event, state)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Take up the weights if it is time, or exchange them with their average."""
        super().apply(event, state, logger)
        if event in (Event.BATCH_START, Event.FIT_END) and self._budget.progress >= self._start:
            point = int((self._budget.progress - self._start) / self._interval + 1e-9)
            if point > self._passed:
                self._passed = point
                self.add_snapshot(state.model)

    def state_dict(self) -> dict[str, Any]:
        """The average and how far it has come."""
        return super().state_dict() | {"passed": self._passed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        super().load_state_dict(state)
        self._passed = state["passed"]


def parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters by name; without the prefix of DDP, so that names fit a run on any number of devices."""
    reshard(model)
    return [(name.removeprefix("module."), p) for name, p in model.named_parameters()]


def weights_held(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """What this rank holds of each parameter, by name; without autograd, and to write to."""
    return [(name, local(p)) for name, p in parameters(model)]


def saved_average(algorithms: Iterable[tuple[str, dict[str, Any]]]) -> Weights | None:
    """The average among the algorithms of a checkpoint, None where there is none."""
    return next((state["average"] for _, state in algorithms if state.get("average")), None)
