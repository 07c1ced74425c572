"""Test helpers: a small masked LM, a batch, and every optimizer that runs on a CPU."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from composer.core import Event, Precision, Timestamp

from cram_composer.algorithms.optimizer_hooks import SampledCurvature
from cram_composer.config.schema.introspect import sections, tag
from cram_composer.config.schema.model import ModelConfig
from cram_composer.config.schema.optimizer import Optimizer, OptimizerConfig
from cram_composer.models.factory import build_model
from cram_composer.models.training_model import Batch, MaskedLMTrainingModel
from cram_composer.optim import build_optimizer
from tests.models.tiny_models import training_batch

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SPECIAL = {"pad": 0, "cls": 2, "sep": 3}
CONFIGS = {tag(section): section for section in sections(OptimizerConfig)}
ON_CPU = sorted(CONFIGS.keys() - {"adamw-8bit"})
# Learning rates for ten steps of a small model, and preconditioner frequencies within ten steps.
SETTINGS = {
    "adafactor": {"lr": 0.3},
    "lamb": {"lr": 0.05},
    "lion": {"lr": 3e-3},
    "radam": {"lr": 0.3},
    "schedule-free": {"lr": 0.02},
    "shampoo": {"precondition_frequency": 3, "block_size": 8},
    "soap": {"precondition_frequency": 3},
    "sophia": {"hessian_frequency": 3},
}


def optimizer_config(name: str, **settings) -> Optimizer:
    """Return the settings of an optimizer with lr_scale 1."""
    return CONFIGS[name](**{"lr_scale": 1.0, **settings})


def small_settings(name: str, **changes) -> Optimizer:
    return optimizer_config(name, **{"lr": 1e-2, **SETTINGS.get(name, {}), **changes})


def small_model(**changes) -> MaskedLMTrainingModel:
    torch.manual_seed(0)
    return MaskedLMTrainingModel(build_model(ModelConfig(**{**SIZES, **changes}), 40, SPECIAL))


def run_state(model: MaskedLMTrainingModel, batch: Batch, **others) -> SimpleNamespace:
    """Build a stand-in for Composer's State with the attributes that optimizer hooks read."""
    fixed = {"precision": Precision.FP32, "precision_config": None, "scaler": None, "rank_zero_seed": 17}
    return SimpleNamespace(**{"model": model, "batch": batch, "timestamp": Timestamp(batch=3), **fixed, **others})


def small_optimizer(name: str, model: MaskedLMTrainingModel, **changes) -> torch.optim.Optimizer:
    """Build an optimizer, with its curvature if it needs one."""
    optimizer = build_optimizer(small_settings(name, **changes), model)
    if hasattr(optimizer, "curvature"):
        support, state = SampledCurvature(optimizer), run_state(model, training_batch())
        for event in (Event.FIT_START, Event.BEFORE_FORWARD):
            support.apply(event, state, None)
    return optimizer


def step(model: MaskedLMTrainingModel, optimizer: torch.optim.Optimizer, seed: int = 0) -> float:
    """Take one step with a closure, as Composer does; return the loss before it. Batches depend on `seed`."""
    batch = training_batch()
    shift = torch.roll(batch["input_ids"], seed, dims=1)

    def closure() -> float:
        optimizer.zero_grad()
        inputs = {**batch, "input_ids": shift}
        loss = model(inputs).loss
        loss.backward()
        return loss.item()

    return optimizer.step(closure)


def stand_in_for_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replace bitsandbytes by torch's AdamW and pretend that there is a GPU.

    Returns:
        A list that collects the overrides registered with bitsandbytes.
    """
    asked: list[Any] = []
    manager = SimpleNamespace(register_module_override=lambda *arguments: asked.append(arguments))
    library: Any = ModuleType("bitsandbytes.optim")
    library.AdamW8bit = type("AdamW8bit", (torch.optim.AdamW,), {})
    library.GlobalOptimManager = SimpleNamespace(get_instance=lambda: manager)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", library)
    return asked
