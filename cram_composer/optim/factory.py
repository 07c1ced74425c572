"""Optimizers by name. To add one: a function here, a line in `OPTIMIZERS`, its keys in config/optimizer_schema.py."""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cram_composer.config.schema.optimizer import optimizer_values
from cram_composer.errors import CramError
from cram_composer.optim.groups import parameter_groups
from cram_composer.optim.parameters import ModelParameter

if TYPE_CHECKING:
    from cram_composer.config.schema.optimizer import OptimizerConfig

Values = dict[str, Any]
Groups = Callable[..., list[dict[str, Any]]]  # `parameter_groups` with all but its options bound
Builder = Callable[[nn.Module, Values, Groups], torch.optim.Optimizer]

# pytorch_optimizer is imported where it is used: it takes a second, and AdamW does without it.


def adamw(model: nn.Module, values: Values, groups: Groups) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), torch's fused kernel: one pass over all parameters."""
    return torch.optim.AdamW(groups(), betas=tuple(values["betas"]), eps=values["eps"], fused=True)


def adamw_8bit(model: nn.Module, values: Values, groups: Groups) -> torch.optim.Optimizer:
    """AdamW with moments in 8 bits by block, those of embeddings in 32 (Dettmers et al. 2021, arXiv 2110.02861)."""
    if not torch.cuda.is_available():
        raise CramError("optimizer.name: adamw-8bit needs a GPU, and there is none here; use optimizer.name=adamw")
    try:
        optim = importlib.import_module("bitsandbytes.optim")
    except ImportError:
        raise CramError(
            "optimizer.name: adamw-8bit needs bitsandbytes, which is not installed: "
            "pip install bitsandbytes, or use optimizer.name=adamw"
        ) from None
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            optim.GlobalOptimManager.get_instance().register_module_override(module, "weight", {"optim_bits": 32})
    return optim.AdamW8bit(groups(), betas=tuple(values["betas"]), eps=values["eps"])


def adafactor(model: nn.Module, values: Values, groups: Groups) -> torch.optim.Optimizer:
    """Adafactor (Shazeer and Stern 2018, arXiv 1804.04235) at the run's own learning rate.

    Not torch's: that one caps the rate at 1 / sqrt(step), whatever the schedule says.
    """
    from pytorch_optimizer import AdaFactor

    return AdaFactor(
        groups(),
        betas=(values["momentum"] or None, 0.999),  # 1 - step^-0.8 is capped as by Zhai et al. 2022, arXiv 2106.04560
        scale_parameter=values["scale_parameter"],
        relative_step=False,
        momentum_dtype=torch.float32,
    )


def adan(model: nn.Module, values: Values, groups: Groups) -> torch.optim.Optimizer:
    """Adan (Xie et al. 2022, arXiv 2208.06677, algorithm 1, with its proximal weight decay)."""
    from pytorch_optimizer import Adan

    return Adan(groups(), betas=tuple(values["betas"]), eps=values["eps"])


def lamb(model: nn.Module, values: Values, groups: Groups) -> torch.optim.Optimizer:
    """LAMB (You et al. 2019, arXiv 1904.00962, algorithm 2) as in the authors' BERT code.

    Weight decay is part of the update whose norm is taken, norms and biases have a trust ratio of 1, and neither the
    norm of a weight is clamped nor the rate of the first steps raised by a bias correction.
    """
    from pytorch_optimizer import Lamb

    optimizer = Lamb(
        groups(options=lambda parameter: {"adam": parameter.parameter.ndim < 2}),
        betas=tuple(values["betas"]),
        eps=values["eps"],
        weight_decouple=False,
        adam_debias=True,
    )
    optimizer.clamp = math.inf
    return optimizer


def lion(model: nn.Module, values: Values, groups: Groups) -> torch.optim.Optimizer:
    """Lion (Chen et al. 2023, arXiv 2302.06675, algorithm 2): the sign of an interpolated momentum."""
    from pytorch_optimizer import Lion

    return Lion(groups(), betas=tuple(values["betas"]))


def muon(model: nn.Module, values: Values, groups: Groups) -> torch.optim.Optimizer:
    """Muon for the matrices inside the layers, AdamW for all else, on one learning rate (Liu et al. 2025, 2502.16982).

    Updates of a matrix are scaled by 0.2 sqrt(max(rows, columns)) (their equation 4), to the root mean square of
    AdamW's, so that rate and weight decay can be shared; `matrix_lr` gives the matrices a rate of their own.
    """
    from cram_composer.optim.muon import ProjectionMuon

    def options(parameter: ModelParameter) -> dict[str, Any]:
        if parameter.role != "matrix" or not parameter.in_layer:
            return {"use_muon": False}
        own = {} if values["matrix_lr"] is None else {"lr": values["matrix_lr"]}
        return {"use_muon": True, "parts": parameter.parts, **own}

    return ProjectionMuon(
        groups(options=options),
        momentum=values["momentum"],
        ns_steps=values["ns_steps"],
        use_adjusted_lr=True,
        adamw_betas=tuple(values["betas"]),
        adamw_eps=values["eps"],
    )


def radam(model: nn.Module, values: Values, groups: Groups) -> torch.optim.Optimizer:
    """RAdam (Liu et al. 2019, arXiv 1908.03265, algorithm 2), torch's own, with decoupled weight decay."""
    return torch.optim.RAdam(
        groups(), betas=tuple(values["betas"]), eps=values["eps"], decoupled_weight_decay=True, foreach=True
    )


def schedule_free(model: nn.Module, values: Values, groups: Groups) -> torch.optim.Optimizer:
    """Schedule-free AdamW (Defazio et al. 2024, arXiv 2405.15682, algorithm 1).

    Warmup is the schedule's: the average weighs a step by the square of the highest rate so far, as with the authors'.
    """
    from pytorch_optimizer import ScheduleFreeAdamW

    return ScheduleFreeAdamW(groups(), betas=tuple(values["betas"]), eps=values["eps"], r=values["averaging_power"])


def shampoo(model: nn.Module, values: Values, groups: Groups) -> torch.optim.Optimizer:
    """Shampoo by blocks, grafted on RMSProp's step size (Anil et al. 2020, arXiv 2002.09018, section 4).

    A tensor with a side of more than 8192, such as a token embedding, takes RMSProp's step with momentum.
    """
    from pytorch_optimizer.optimizer.utils.graft import LayerWiseGrafting

    from cram_composer.optim.shampoo import Shampoo

    return Shampoo(
        groups(),
        betas=tuple(values["betas"]),
        matrix_eps=values["eps"],
        moving_average_for_momentum=True,
        decoupled_weight_decay=True,
        # The first inverse roots are there at the first step that uses them.
        start_preconditioning_step=values["precondition_frequency"],
        preconditioning_compute_steps=values["precondition_frequency"],
        block_size=values["block_size"],
        graft_type=LayerWiseGrafting.RMSPROP,
    )


def soap(model: nn.Module, values: Values, groups: Groups) -> torch.optim.Optimizer:
    """SOAP (Vyas et al. 2024, arXiv 2409.11321, algorithm 3): Adam in the eigenbasis of Shampoo's preconditioner."""
    from pytorch_optimizer import SOAP

    return SOAP(
        groups(),
        betas=tuple(values["betas"]),
        eps=values["eps"],
        precondition_frequency=values["precondition_frequency"],
        max_precondition_dim=values["max_precondition_dim"],
    )


def sophia(model: nn.Module, values: Values, groups: Groups) -> torch.optim.Optimizer:
    """Sophia-G (Liu et al. 2023, arXiv 2305.14342), see SophiaG."""
    from cram_composer.optim.sophia import SophiaG

    return SophiaG(
        groups(),
        betas=tuple(values["betas"]),
        eps=values["eps"],
        rho=values["rho"],
        hessian_frequency=values["hessian_frequency"],
    )


def stableadamw(model: nn.Module, values: Values, groups: Groups) -> torch.optim.Optimizer:
    """AdamW with Adafactor's update clipping per tensor (Wortsman et al. 2023, arXiv 2304.13013, algorithm 2)."""
    from pytorch_optimizer import StableAdamW

    return StableAdamW(groups(), betas=tuple(values["betas"]), eps=values["eps"])


OPTIMIZERS: dict[str, Builder] = {
    "adafactor": adafactor,
    "adamw": adamw,
    "adamw-8bit": adamw_8bit,
    "adan": adan,
    "lamb": lamb,
    "lion": lion,
    "muon": muon,
    "radam": radam,
    "schedule-free": schedule_free,
    "shampoo": shampoo,
    "soap": soap,
    "sophia": sophia,
    "stableadamw": stableadamw,
}


def build_optimizer(settings: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer `settings.name` over the parameter groups of `model`.

    Raises:
        CramError: there is no optimizer of that name, it cannot run here, or a key is set that it does not read.
    """
    if settings.name not in OPTIMIZERS:
        nearest = difflib.get_close_matches(settings.name, OPTIMIZERS, n=1, cutoff=0.0)[0]
        raise CramError(f"optimizer.name: there is no '{settings.name}'; did you mean '{nearest}'?")
    values = optimizer_values(settings)
    groups = partial(
        parameter_groups,
        model,
        settings.lr,
        values["weight_decay"],
        settings.groups,
        values.get("mup_base_width"),
    )
    return OPTIMIZERS[settings.name](model, values, groups)
