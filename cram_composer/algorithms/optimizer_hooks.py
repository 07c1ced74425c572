"""Algorithms that some optimizers need around their steps; added with the optimizer, without a key of their own."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from composer.core import Algorithm, Event, Precision, State, get_precision_context
from composer.loggers import Logger
from composer.utils import dist
from torch import nn

from cram_composer.algorithms.averaging.weight_average import WeightAverage, Weights, parameters
from cram_composer.budget.budget import Budget
from cram_composer.data.masking import IGNORED
from cram_composer.models.training_model import Batch, MaskedLMTrainingModel
from cram_composer.scaleout.shards import local


class ScheduleFreeWeights(WeightAverage):
    """Evaluate a schedule-free optimizer at its average x; during training the model's weights are y.

    Defazio et al. 2024, arXiv 2405.15682, section 2: y = (1 - beta) z + beta x; the optimizer stores y and z. After an
    evaluation, y is restored from a copy. Recomputing it from x would round, and the run would depend on the number of
    evaluations.
    """

    def __init__(self, budget: Budget, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        super().__init__(budget)
        self._optimizer = optimizer
        self._parameters = dict(parameters(model))

    @torch.no_grad()
    def average(self) -> Weights:
        """Return x by parameter name; before the first step it equals y."""
        names = {p: name for name, p in self._parameters.items()}
        average = {name: local(p) for p, name in names.items()}
        for group in self._optimizer.param_groups:
            for p in group["params"]:
                z = self._optimizer.state.get(p, {}).get("z")
                if z is not None:
                    average[names[p]] = local(p).lerp(local(z), 1.0 - 1.0 / group["betas"][0])
        return average


class SampledCurvature(Algorithm):
    """Provide SophiaG with the Gauss-Newton-Bartlett estimate of the curvature on the last microbatch of a step.

    The paper also uses a part of the batch (Liu et al. 2023, arXiv 2305.14342, section 3.1).
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer: Any = optimizer
        self._microbatch: Batch | None = None

    def match(self, event: Event, state: State) -> bool:
        """Match once the model is on its device, and every microbatch."""
        return event in (Event.FIT_START, Event.BEFORE_FORWARD)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Connect the optimizer with the model, or remember the microbatch."""
        if event == Event.FIT_START:
            self._optimizer.curvature = lambda parameters: self._estimate(state, parameters)
        else:
            self._microbatch = state.batch

    def _estimate(self, state: State, parameters: list[nn.Parameter]) -> list[torch.Tensor] | None:
        model = getattr(state.model, "module", state.model)  # unwrap DDP
        assert isinstance(model, MaskedLMTrainingModel) and self._microbatch is not None
        # Seeded by step and rank, so that a resumed run draws the same labels and no other random state changes.
        offset = int(state.timestamp.batch) * dist.get_world_size() + dist.get_global_rank()
        generator = torch.Generator(self._microbatch["input_ids"].device).manual_seed(state.rank_zero_seed + offset)
        is_scaled = state.precision == Precision.AMP_FP16
        scale = state.scaler.get_scale() if is_scaled and state.scaler is not None else 1.0
        with get_precision_context(state.precision, state.precision_config):
            return gauss_newton_bartlett(model, self._microbatch, parameters, generator, scale)


def gauss_newton_bartlett(
    model: MaskedLMTrainingModel,
    batch: Batch,
    parameters: list[nn.Parameter],
    generator: torch.Generator,
    loss_scale: float = 1.0,
) -> list[torch.Tensor] | None:
    """Estimate the diagonal of the Gauss-Newton matrix without second derivatives.

    Liu et al. 2023, arXiv 2305.14342, algorithm 2: n g^2 for each entry, where g is the gradient of the mean loss on n
    labels drawn from the model's output. `labels` of `batch` mark the positions that count. The model runs eagerly.
    Collective.

    Args:
        model: in training or evaluation mode.
        batch: as the model takes it, on its device.
        parameters: the parameters to differentiate by.
        generator: source of the labels, on the batch's device.
        loss_scale: factor on the loss in the backward pass, for fp16.

    Returns:
        A tensor in the shape of each parameter, identical on all ranks; None if any of them is not finite.
    """
    excluded = {"labels"} if model.predicts_positions else {"labels", "masked_positions"}
    inputs = {name: tensor for name, tensor in batch.items() if name not in excluded}
    device, dtype = batch["input_ids"].device.type, model.autocast_dtype
    autocast = torch.autocast(device, dtype) if dtype is not None else contextlib.nullcontext()
    with torch.enable_grad(), torch.compiler.set_stance("force_eager"), autocast:
        outputs = model.model(**inputs)
    with torch.enable_grad():
        logits = model.label_logits(batch, outputs).float().flatten(0, 1)
        # The argmax of logits with Gumbel noise is a sample of their softmax. torch.multinomial would abort the process
        # on CUDA if a logit were not finite.
        drawn = (logits.detach() - torch.empty_like(logits).exponential_(generator=generator).log()).argmax(-1)
        counted = batch["labels"].flatten() != IGNORED
        count = counted.sum()
        dist.all_reduce(count)
        loss = F.cross_entropy(logits, drawn.where(counted, IGNORED), ignore_index=IGNORED, reduction="sum") / count
        gradients = torch.autograd.grad(loss * loss_scale, parameters, allow_unused=True)
    summed = [torch.zeros_like(p) if g is None else g / loss_scale for p, g in zip(parameters, gradients, strict=True)]
    for gradient in summed:
        dist.all_reduce(gradient)
    if not torch.isfinite(torch.nn.utils.get_total_norm(summed)):
        return None
    return [count * gradient.square() for gradient in summed]


def optimizer_hooks(optimizer: torch.optim.Optimizer, model: nn.Module, budget: Budget) -> list[Algorithm]:
    """Build the algorithms that `optimizer` needs."""
    if hasattr(optimizer, "curvature"):
        return [SampledCurvature(optimizer)]
    if "train_mode" not in optimizer.param_groups[0]:
        return []
    return [ScheduleFreeWeights(budget, optimizer, model)]
