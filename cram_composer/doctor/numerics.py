"""The run's model on its device beside the same weights in fp32 on the CPU, without compilation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from cram_composer.doctor.checks import Check, CheckContext
from cram_composer.doctor.precision import DTYPES
from cram_composer.models.attention_kernels import choose_attention
from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM
from cram_composer.models.losses import LOSSES, choose_loss
from cram_composer.models.training_model import MaskedLMTrainingModel
from cram_composer.optim.factory import build_optimizer

_ROWS = 8
# Least cosine between the gradients of a parameter, and largest difference of the losses in nats. bf16 has 8 bits of
# mantissa, fp16 has 11; a wrong kernel or a wrong mask gives cosines far below.
_COSINE = {"fp32": 0.9999, "fp16": 0.98, "bf16": 0.95}
_NATS = {"fp32": 1e-3, "fp16": 0.03, "bf16": 0.1}
_NEGLIGIBLE = 1e-3  # gradients this much smaller than the largest are rounding errors, whose direction means nothing


@dataclass(frozen=True)
class _Result:
    loss: float
    gradients: dict[str, torch.Tensor]  # of the parameters, fp32 on the CPU


def check_numerics(context: CheckContext) -> Iterator[Check]:
    """Compare loss, gradients and a step of the optimizer with a reference."""
    torch.manual_seed(context.config.seed)
    reference = context.spec.build_model()
    for module in reference.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    batch = next(iter(context.spec.build_loader(_ROWS)))
    expected = _result(reference.train(), batch)
    kind, precision = context.device.name, context.device.precision
    variants: dict[str, tuple[str, Callable[[MaskedLMTrainingModel], None]]] = {"eager": ("off", lambda model: None)}
    if context.device.compile != "off":
        variants["compiled"] = (context.device.compile, lambda model: None)
    if isinstance(reference.model, CramBertForMaskedLM):
        for kernel in _attention_kernels(kind, precision):
            variants[f"attention {kernel}"] = ("off", partial(_use_attention, kernel, kind, precision))
        for kernel in _loss_kernels(kind):
            variants[f"loss {kernel}"] = ("off", partial(_use_loss, kernel, kind))
    for name, (mode, change) in variants.items():
        model = _on_device(context, reference, mode)
        change(model)
        found = _result(model, {key: value.to(_device(context)) for key, value in batch.items()}, context)
        yield _compare(name, expected, found, precision)
    yield _optimizer_step(context, reference, expected)
    if precision == "fp16":
        yield _overflow(context)


def _attention_kernels(kind: str, precision: str) -> list[str]:
    """Return the attention kernels that can be chosen here."""
    if kind == "cpu":
        return ["eager", "sdpa"]
    chosen = {kernel: choose_attention(kernel, kind, precision)[1] for kernel in ("sdpa", "flex", "flash")}
    return [kernel for kernel, name in chosen.items() if kernel == "sdpa" or name != chosen["sdpa"]]


def _loss_kernels(kind: str) -> list[str]:
    """Return the kernels of the loss that can be chosen here."""
    known = {kernel: loss for kernel, loss in LOSSES.items() if kernel != "liger" or kind == "gpu"}
    return [kernel for kernel, loss in known.items() if choose_loss(kernel, kind)[0] is loss]


def _use_attention(kernel: str, kind: str, precision: str, model: MaskedLMTrainingModel) -> None:
    model.use_attention(kernel, kind, precision)


def _use_loss(kernel: str, kind: str, model: MaskedLMTrainingModel) -> None:
    model.use_loss(kernel, kind)


def _device(context: CheckContext) -> torch.device:
    return torch.device("cuda" if context.device.name == "gpu" else "cpu")


def _on_device(context: CheckContext, reference: MaskedLMTrainingModel, mode: str) -> MaskedLMTrainingModel:
    """Build the run's model with the weights of `reference` on the run's device."""
    model = context.spec.build_model(context.device.autocast_dtype, mode)
    model.load_state_dict(reference.state_dict())
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.use_kernels(context.config.model, context.device.name, context.device.precision)
    return model.to(_device(context)).train()


def _autocast(context: CheckContext | None) -> Any:
    if context is None or context.device.name == "cpu" or context.device.precision == "fp32":
        return nullcontext()  # on a CPU the model's own forward does it
    return torch.autocast("cuda", DTYPES[context.device.precision])


def _result(
    model: MaskedLMTrainingModel, batch: dict[str, torch.Tensor], context: CheckContext | None = None
) -> _Result:
    model.zero_grad()
    with _autocast(context):
        loss = model(batch).loss
    loss.backward()
    gradients = {
        name: parameter.grad.detach().float().cpu().clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return _Result(float(loss.detach()), gradients)


def _cosines(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the cosine between two tensors of each name that is not negligible."""
    largest = max(float(tensor.norm()) for tensor in expected.values())
    return {
        name: float(F.cosine_similarity(tensor.flatten(), found[name].flatten(), dim=0))
        for name, tensor in expected.items()
        if float(tensor.norm()) > _NEGLIGIBLE * largest
    }


def _compare(name: str, expected: _Result, found: _Result, precision: str) -> Check:
    difference = abs(found.loss - expected.loss)
    cosines = _cosines(expected.gradients, found.gradients)
    worst = min(cosines, key=lambda parameter: cosines[parameter])
    line = (
        f"loss {found.loss:.4f}, {difference:.1e} from fp32 on the CPU; least cosine of a gradient {cosines[worst]:.4f}"
    )
    values = {"loss": found.loss, "difference": difference, "least_cosine": cosines[worst], "parameter": worst}
    right = difference <= _NATS[precision] and cosines[worst] >= _COSINE[precision]
    return Check(name, "pass" if right else "fail", line if right else f"{line} ({worst})", values)


def _optimizer_step(context: CheckContext, reference: MaskedLMTrainingModel, expected: _Result) -> Check:
    """Take one step with the same gradients on the CPU and on the device."""
    config, changes = context.config, []
    for model in (copy.deepcopy(reference), _on_device(context, reference, "off")):
        before = {name: parameter.detach().float().cpu().clone() for name, parameter in model.named_parameters()}
        for name, parameter in model.named_parameters():
            if name in expected.gradients:
                parameter.grad = expected.gradients[name].to(parameter)
        optimizer = build_optimizer(config.optimizer, model, config.model.mup_base_width)
        if hasattr(optimizer, "curvature"):  # Sophia samples it in training
            optimizer.curvature = lambda parameters: [torch.ones_like(parameter) for parameter in parameters]
        optimizer.step()
        changes.append({n: p.detach().float().cpu() - before[n] for n, p in model.named_parameters()})
    cosines = _cosines(*changes)
    worst = min(cosines, key=lambda parameter: cosines[parameter])
    line = f"{config.optimizer.name}: least cosine of a change {cosines[worst]:.4f}"
    right = cosines[worst] >= _COSINE["bf16"]  # Muon multiplies in bf16
    values = {"optimizer": config.optimizer.name, "least_cosine": cosines[worst], "parameter": worst}
    return Check("optimizer", "pass" if right else "fail", line if right else f"{line} ({worst})", values)


def _overflow(context: CheckContext) -> Check:
    """A gradient that overflows in fp16 must skip the step and halve the scale."""
    weight = torch.nn.Parameter(torch.ones(8, device=_device(context)))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**16)
    scaler.scale((weight * torch.finfo(torch.float32).max).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    kept = bool(torch.equal(weight.detach(), torch.ones_like(weight)))
    right = kept and scaler.get_scale() == 2.0**15
    line = "the step is skipped and the scale halved" if right else "the step was not skipped"
    return Check("fp16 overflow", "pass" if right else "fail", line, {"scale": scaler.get_scale()})
