"""Every optimizer learns, resumes exactly, follows the schedule and changes no other parameters."""

from __future__ import annotations

import copy
import io
from types import SimpleNamespace

import pytest
import torch
from composer.algorithms import GradientClipping
from composer.core import Event
from composer.devices import DeviceCPU
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from cram_composer.algorithms.nonfinite_guard import NonFiniteGuard
from cram_composer.budget.callback import BudgetCallback
from cram_composer.budget.schedules import build_schedule
from cram_composer.config.schema.optimizer import GroupsConfig
from cram_composer.config.schema.schedule import TriangleConfig
from cram_composer.errors import CramError
from cram_composer.models.training_model import MaskedLMTrainingModel
from cram_composer.optim import OPTIMIZERS, build_optimizer
from tests.models.tiny_models import training_batch
from tests.optim.small import (
    CONFIGS,
    ON_CPU,
    optimizer_config,
    run_state,
    small_model,
    small_optimizer,
    stand_in_for_bitsandbytes,
    step,
)

Run = tuple[MaskedLMTrainingModel, torch.optim.Optimizer]


def small_run(name: str, **changes) -> Run:
    model = small_model()
    return model, small_optimizer(name, model, **changes)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def train(run: Run, steps: range) -> None:
    for number in steps:
        for group in run[1].param_groups:
            group["lr"] = group.setdefault("peak_lr", group["lr"]) * (0.5 + 0.05 * number)
        step(*run, seed=number)


@pytest.mark.parametrize("name", ON_CPU)
def test_optimizer_lowers_the_loss_in_ten_steps(name: str):
    run = small_run(name)
    losses = [step(*run) for _ in range(11)]
    assert losses[10] < losses[0] - 0.3, losses


@pytest.mark.parametrize("name", ON_CPU)
def test_a_resumed_run_equals_an_uninterrupted_one(name: str):
    """Save and load as Composer does, at frequencies that update curvature and preconditioners."""
    whole, first = small_run(name), small_run(name)
    torch.manual_seed(5)
    train(whole, range(10))
    torch.manual_seed(5)
    train(first, range(5))
    file = io.BytesIO()
    states = {"model": first[0].state_dict(), "optimizer": get_optimizer_state_dict(*first)}
    torch.save({**states, "random": torch.get_rng_state()}, file)
    train(first, range(5, 7))  # later steps must not change the saved state
    file.seek(0)
    saved = torch.load(file, weights_only=False)
    second = small_run(name)
    second[0].load_state_dict(saved["model"])
    set_optimizer_state_dict(*second, optim_state_dict=saved["optimizer"])
    for fresh, old in zip(second[1].param_groups, whole[1].param_groups, strict=True):
        assert fresh.keys() == old.keys()
    torch.set_rng_state(saved["random"])
    train(second, range(5, 10))
    for resumed, uninterrupted in zip(weights(second[0]), weights(whole[0]), strict=True):
        assert torch.equal(resumed, uninterrupted)


@pytest.mark.parametrize("name", ON_CPU)
def test_the_schedule_reaches_every_group(name: str):
    groups = GroupsConfig(embedding_lr=0.5, layer_lr_decay=0.5)
    model, optimizer = small_run(name, groups=groups)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    assert len({group["peak_lr"] for group in optimizer.param_groups}) >= 4
    budget = SimpleNamespace(progress=1.0)
    schedule = build_schedule(TriangleConfig())
    clock = BudgetCallback(budget, None, schedule, lambda: 0.0, lambda: 0, lambda state: None)  # type: ignore[arg-type]
    state = SimpleNamespace(optimizers=[optimizer])
    before = weights(model)
    clock.batch_start(state, None)  # type: ignore[arg-type]  # the triangle ends at zero
    step(model, optimizer)
    for old, new in zip(before, weights(model), strict=True):
        torch.testing.assert_close(old, new, rtol=0, atol=0)
    budget.progress = 0.75
    clock.batch_start(state, None)  # type: ignore[arg-type]
    assert clock.lr == optimizer.param_groups[-1]["peak_lr"]
    step(model, optimizer)
    assert all(not torch.equal(old, new) for old, new in zip(before, weights(model), strict=True))


@pytest.mark.parametrize("name", ON_CPU)
def test_step_skipped_by_the_guard_changes_nothing(name: str):
    model, optimizer = small_run(name, weight_decay=0.1)
    step(model, optimizer)
    step(model, optimizer)
    before, moments = weights(model), copy.deepcopy(optimizer.state_dict()["state"])
    guard = NonFiniteGuard("skip-step", 3, lambda state, logger: False)
    fixed = {"timestamp": SimpleNamespace(batch=2), "device": DeviceCPU(), "optimizers": [optimizer]}
    state = run_state(model, training_batch(), **fixed)

    def closure() -> float:
        optimizer.zero_grad()
        state.loss = {"total": model(state.batch).loss * float("nan")}
        guard.apply(Event.AFTER_LOSS, state, None)  # type: ignore[arg-type]
        state.loss["total"].backward()
        guard.apply(Event.AFTER_TRAIN_BATCH, state, None)  # type: ignore[arg-type]
        return state.loss["total"].item()

    optimizer.step(closure)
    assert guard.skipped == 1
    assert all(torch.equal(old, new) for old, new in zip(before, weights(model), strict=True))
    after = optimizer.state_dict()["state"]
    for index, state_before in moments.items():
        for key, value in state_before.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, after[index][key]), key
    assert step(model, optimizer) < 10.0 and all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("name", ON_CPU)
def test_skipped_first_step_is_harmless(name: str):
    model, optimizer = small_run(name)
    before = weights(model)
    optimizer.step(lambda: 0.0)  # no gradients
    assert all(torch.equal(old, new) for old, new in zip(before, weights(model), strict=True))
    losses = [step(model, optimizer) for _ in range(11)]
    assert losses[10] < losses[0] - 0.3, losses


@pytest.mark.parametrize("name", ON_CPU)
def test_steps_use_gradients_clipped_inside_the_closure(name: str):
    """Composer clips at the end of its closure, so the step must equal one with small gradients."""
    clipped, small = small_run(name), small_run(name)
    clip, batch = GradientClipping("norm", 1e-3), training_batch()
    state = run_state(clipped[0], batch, fsdp_config_version=None)

    def closure() -> float:
        loss = clipped[0](batch).loss
        loss.backward()
        clip.apply(Event.AFTER_TRAIN_BATCH, state, None)  # type: ignore[arg-type]
        return loss.item()

    small[0](batch).loss.backward()
    torch.nn.utils.clip_grad_norm_(small[0].parameters(), 1e-3)
    torch.manual_seed(1)
    clipped[1].step(closure)
    torch.manual_seed(1)
    small[1].step()
    for ours, theirs in zip(weights(clipped[0]), weights(small[0]), strict=True):
        assert torch.equal(ours, theirs)


def test_the_schema_and_the_registry_have_the_same_optimizers():
    assert set(CONFIGS) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", ON_CPU)
def test_the_rate_is_lr_times_lr_scale(name: str):
    optimizer = build_optimizer(CONFIGS[name](lr=0.01, lr_scale=0.5), small_model())
    assert {group["lr"] for group in optimizer.param_groups} == {0.005}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, CONFIGS[name]().weight_decay}


def test_8_bits_need_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CramError, match="adamw-8bit needs a GPU"):
        build_optimizer(optimizer_config("adamw-8bit", lr=0.002), small_model())


def test_8_bits_are_for_all_but_embeddings(monkeypatch: pytest.MonkeyPatch):
    asked = stand_in_for_bitsandbytes(monkeypatch)
    model = small_model()
    optimizer = build_optimizer(optimizer_config("adamw-8bit", lr=0.002, betas=[0.8, 0.9], eps=1e-7), model)
    assert type(optimizer).__name__ == "AdamW8bit"
    assert asked == [(model.model.encoder.embeddings.word_embeddings, "weight", {"optim_bits": 32})]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.002, (0.8, 0.9), 1e-7)


def test_shampoo_is_independent_of_the_global_random_state():
    """Its inverse roots start from random vectors; the weights of two ranks must not diverge."""
    stepped = []
    for seed in (1, 2):
        model, optimizer = small_run("shampoo", precondition_frequency=1)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        for number in range(3):
            step(model, optimizer, number)
        assert torch.equal(torch.get_rng_state(), before)
        stepped.append(weights(model))
    assert all(torch.equal(one, other) for one, other in zip(*stepped, strict=True))
