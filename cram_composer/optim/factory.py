"""Optimizers by name. To add one: a class in config/schema/optimizer.py, a line in `OPTIMIZERS`, and a recipe."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cram_composer.config.packages import require_package
from cram_composer.config.schema.optimizer import Optimizer
from cram_composer.errors import CramError
from cram_composer.optim.groups import parameter_groups
from cram_composer.optim.parameters import ModelParameter

if TYPE_CHECKING:
    from cram_composer.config.schema import optimizer as schema

Groups = Callable[..., list[dict[str, Any]]]  # `parameter_groups` with all arguments except `options` bound
Builder = Callable[[nn.Module, Any, Groups], torch.optim.Optimizer]

# Libraries are imported on use: pytorch_optimizer takes a second, and AdamW does not need it.


def library(path: str, renamed: Mapping[str, str] = MappingProxyType({}), **fixed: Any) -> Builder:
    """Return a builder for the class at `path` ("module:class").

    The class gets the parameter groups, the settings specific to this optimizer, and `fixed`. `renamed` maps names of
    settings to the library's names.
    """

    def build(model: nn.Module, settings: Any, groups: Groups) -> torch.optim.Optimizer:
        module, _, name = path.partition(":")
        own = settings.model_dump(exclude=set(Optimizer.model_fields))
        optimizer = getattr(importlib.import_module(module), name)
        built: torch.optim.Optimizer = optimizer(
            groups(), **{renamed.get(key, key): value for key, value in own.items()}, **fixed
        )
        return built

    return build


def adamw_8bit(model: nn.Module, settings: schema.AdamW8bitConfig, groups: Groups) -> torch.optim.Optimizer:
    """Build AdamW with blockwise 8-bit moments, 32-bit for embeddings (Dettmers et al. 2021, arXiv 2110.02861)."""
    if not torch.cuda.is_available():
        raise CramError("optimizer.name: adamw-8bit needs a GPU, and none was found; set optimizer.name=adamw")
    require_package("bitsandbytes", "optimizer.name")
    optim = importlib.import_module("bitsandbytes.optim")
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            optim.GlobalOptimManager.get_instance().register_module_override(module, "weight", {"optim_bits": 32})
    return optim.AdamW8bit(groups(), betas=settings.betas, eps=settings.eps)


def adafactor(model: nn.Module, settings: schema.AdafactorConfig, groups: Groups) -> torch.optim.Optimizer:
    """Build Adafactor (Shazeer and Stern 2018, arXiv 1804.04235) with the run's learning rate."""
    from pytorch_optimizer import AdaFactor

    return AdaFactor(
        groups(),
        # The second-moment decay 1 - step^-0.8 is capped as in Zhai et al. 2022, arXiv 2106.04560.
        betas=(settings.momentum or None, 0.999),  # type: ignore[arg-type]
        scale_parameter=settings.scale_parameter,
        relative_step=False,
        momentum_dtype=torch.float32,
    )


def lamb(model: nn.Module, settings: schema.LambConfig, groups: Groups) -> torch.optim.Optimizer:
    """Build LAMB (You et al. 2019, arXiv 1904.00962, algorithm 2) as in the authors' BERT code.

    The update whose norm is taken includes weight decay. Norms and biases have a trust ratio of 1. The norm of a weight
    is not clamped, and there is no bias correction of the first steps.
    """
    from pytorch_optimizer import Lamb

    optimizer = Lamb(
        groups(options=lambda parameter: {"adam": parameter.parameter.ndim < 2}),
        betas=settings.betas,
        eps=settings.eps,
        weight_decouple=False,
        adam_debias=True,
    )
    optimizer.clamp = math.inf
    return optimizer


def muon(model: nn.Module, settings: schema.MuonConfig, groups: Groups) -> torch.optim.Optimizer:
    """Build Muon for the matrices inside the layers and AdamW for all other parameters (Liu et al. 2025, 2502.16982).

    Updates of a matrix are scaled by 0.2 sqrt(max(rows, columns)) (their equation 4) to the root mean square of AdamW's
    updates, so that both share learning rate and weight decay.
    """
    from cram_composer.optim.muon import ProjectionMuon

    def options(parameter: ModelParameter) -> dict[str, Any]:
        if parameter.role != "matrix" or not parameter.in_layer:
            return {"use_muon": False}
        return {"use_muon": True, "parts": parameter.parts}

    return ProjectionMuon(
        groups(options=options),
        momentum=settings.momentum,
        ns_steps=settings.ns_steps,
        ns_coeffs=settings.ns_coeffs,
        use_adjusted_lr=True,
        adamw_betas=settings.betas,
        adamw_eps=settings.eps,
    )


def shampoo(model: nn.Module, settings: schema.ShampooConfig, groups: Groups) -> torch.optim.Optimizer:
    """Build blockwise Shampoo, grafted on RMSProp's step size (Anil et al. 2020, arXiv 2002.09018, section 4).

    Tensors with a side of more than 8192, such as a token embedding, use RMSProp with momentum instead.
    """
    from pytorch_optimizer.optimizer.utils.graft import LayerWiseGrafting

    from cram_composer.optim.shampoo import Shampoo

    return Shampoo(
        groups(),
        betas=settings.betas,
        matrix_eps=settings.eps,
        moving_average_for_momentum=True,
        decoupled_weight_decay=True,
        # Equal, so that the inverse roots exist at the first step that uses them.
        start_preconditioning_step=settings.precondition_frequency,
        preconditioning_compute_steps=settings.precondition_frequency,
        block_size=settings.block_size,
        graft_type=LayerWiseGrafting.RMSPROP,
    )


OPTIMIZERS: dict[str, Builder] = {
    # torch's Adafactor is unsuitable: it caps the rate at 1 / sqrt(step), regardless of the schedule.
    "adafactor": adafactor,
    "adamw": library("torch.optim:AdamW", fused=True),
    "adamw-8bit": adamw_8bit,
    "adan": library("pytorch_optimizer:Adan"),
    "lamb": lamb,
    "lion": library("pytorch_optimizer:Lion"),
    "muon": muon,
    "radam": library("torch.optim:RAdam", decoupled_weight_decay=True, foreach=True),
    "schedule-free": library("pytorch_optimizer:ScheduleFreeAdamW", renamed={"averaging_power": "r"}),
    "shampoo": shampoo,
    "soap": library("pytorch_optimizer:SOAP"),
    "sophia": library("cram_composer.optim.sophia:SophiaG"),
    "stableadamw": library("pytorch_optimizer:StableAdamW"),
}


def build_optimizer(
    settings: schema.OptimizerConfig, model: nn.Module, mup_base_width: int | None = None
) -> torch.optim.Optimizer:
    """Build the optimizer `settings.name` over the parameter groups of `model`, at `lr_scale` times `lr`.

    Raises:
        CramError: the optimizer needs a GPU or a package that is missing.
    """
    groups = partial(
        parameter_groups,
        model,
        settings.lr * settings.lr_scale,
        settings.weight_decay,
        settings.groups,
        mup_base_width,
    )
    return OPTIMIZERS[settings.name](model, settings, groups)
