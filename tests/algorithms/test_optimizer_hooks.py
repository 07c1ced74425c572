"""Hooks of schedule-free and Sophia around their steps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from composer.core import Event, Timestamp

from cram_composer.algorithms.optimizer_hooks import gauss_newton_bartlett, optimizer_hooks
from cram_composer.budget.budget import Budget, Limits
from cram_composer.optim import build_optimizer
from tests.models.tiny_models import training_batch
from tests.optim.small import ON_CPU, run_state, small_model, small_optimizer, small_settings, step

BUDGET = Budget(Limits(steps=10))


@pytest.mark.parametrize("name", ON_CPU)
def test_other_optimizers_need_nothing(name: str):
    model = small_model()
    needed = optimizer_hooks(build_optimizer(small_settings(name), model), model, BUDGET)
    names = [type(algorithm).__name__ for algorithm in needed]
    assert names == {"schedule-free": ["ScheduleFreeWeights"], "sophia": ["SampledCurvature"]}.get(name, [])


def test_schedule_free_is_evaluated_at_its_average():
    """Compare with arXiv 2405.15682, algorithm 1, at a constant rate and with a negligible second moment."""
    model = small_model()
    optimizer = build_optimizer(small_settings("schedule-free", lr=0.01, betas=[0.8, 0.0], eps=0.0), model)
    (hook,) = optimizer_hooks(optimizer, model, BUDGET)
    name = "model.encoder.layers.0.attention.out.weight"
    y = model.get_parameter(name)
    x = z = y.detach().clone()
    for t in range(1, 6):
        step(model, optimizer, seed=t)
        assert y.grad is not None
        z = z - 0.01 * y.grad  # the library stores the normalised gradient here
        x = (1 - 1 / t) * x + z / t
        torch.testing.assert_close(hook.average()[name], x, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(y.detach(), 0.2 * z + 0.8 * x, rtol=1e-4, atol=1e-6)


def test_a_run_does_not_depend_on_the_number_of_evaluations():
    """Evaluations, exports and checkpoints use the average."""
    trained = []
    for evaluate in (False, True):
        model = small_model()
        optimizer = build_optimizer(small_settings("schedule-free"), model)
        (hook,) = optimizer_hooks(optimizer, model, BUDGET)
        state = SimpleNamespace(model=model)
        for seed in range(4):
            step(model, optimizer, seed)
            if evaluate:
                average = hook.state_dict()["average"]
                hook.apply(Event.EVAL_START, state, None)
                assert all(torch.equal(p, average[name]) for name, p in model.named_parameters())
                hook.apply(Event.EVAL_END, state, None)
        trained.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(once, often) for once, often in zip(*trained, strict=True))


def test_schedule_free_before_its_first_step():
    model = small_model()
    optimizer = build_optimizer(small_settings("schedule-free"), model)
    (hook,) = optimizer_hooks(optimizer, model, BUDGET)
    assert all(torch.equal(hook.average()[name], p) for name, p in model.named_parameters())
    assert not optimizer.state, "torch would consider the optimizer initialized and load nothing"


def test_the_curvature_is_the_gauss_newton_diagonal_on_average():
    """Compare with the explicit diagonal of the mean over tokens of J^T (diag(p) - pp^T) J."""
    model = small_model().double()
    batch = training_batch()
    p = model.get_parameter("model.encoder.final_norm.weight")
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    counted = batch["labels"].flatten() != -100
    logits = model.model(**inputs).logits.flatten(0, 1)[counted]
    rows = [torch.autograd.grad(logit, p, retain_graph=True)[0] for logit in logits.flatten()]
    jacobian = torch.stack(rows).unflatten(0, tuple(logits.shape))  # tokens, vocabulary, entries of the parameter
    share = F.softmax(logits, -1).detach()
    centred = jacobian - torch.einsum("nv,nvp->np", share, jacobian)[:, None]
    expected = torch.einsum("nv,nvp->p", share, centred.square()) / counted.sum()
    generator = torch.Generator().manual_seed(0)
    draws = [gauss_newton_bartlett(model, batch, [p], generator) for _ in range(400)]
    mean = torch.stack([draw[0] for draw in draws if draw is not None]).mean(0)
    assert torch.cosine_similarity(mean, expected, dim=0) > 0.97
    assert mean.sum() == pytest.approx(float(expected.sum()), rel=0.1)


def test_the_curvature_changes_no_gradients_and_supports_models_of_transformers():
    for model in (small_model(), small_model(architecture="hf", hf_name="bert")):
        before = {name: p.grad for name, p in model.named_parameters()}
        estimate = gauss_newton_bartlett(model, training_batch(), list(model.parameters()), torch.Generator())
        assert estimate is not None and all((h >= 0).all() for h in estimate) and any(h.sum() > 0 for h in estimate)
        assert [h.shape for h in estimate] == [p.shape for p in model.parameters()]
        assert {name: p.grad for name, p in model.named_parameters()} == before


def test_a_non_finite_curvature_is_skipped():
    model = small_model()
    optimizer = small_optimizer("sophia", model, hessian_frequency=1)
    step(model, optimizer)
    p = model.get_parameter("model.encoder.layers.0.attention.out.weight")
    moment = optimizer.state[p]["hessian_moment"].clone()
    optimizer.curvature = lambda parameters: None
    step(model, optimizer)
    torch.testing.assert_close(optimizer.state[p]["hessian_moment"], moment, rtol=1e-6, atol=0)
    with torch.no_grad():
        model.get_parameter("model.encoder.final_norm.weight").fill_(float("inf"))
    assert gauss_newton_bartlett(model, training_batch(), list(model.parameters()), torch.Generator()) is None


def test_sophias_update_and_the_frequency_of_its_curvature():
    """The update is lr clip(m / max(rho h, eps), 1), arXiv 2305.14342, algorithm 3."""
    model = small_model()
    optimizer = build_optimizer(
        small_settings("sophia", lr=0.01, weight_decay=0.1, rho=0.5, hessian_frequency=2), model
    )
    asked = []

    def curvature(parameters: list[torch.Tensor]) -> list[torch.Tensor]:
        asked.append(len(asked))
        return [torch.full_like(p, 10.0 ** len(asked)) for p in parameters]

    optimizer.curvature = curvature
    p = model.get_parameter("model.encoder.layers.0.attention.out.weight")
    expected, m, h = p.detach().clone(), torch.zeros_like(p), 0.0
    for number in range(4):
        step(model, optimizer)
        assert p.grad is not None
        if number % 2 == 0:
            h = 0.99 * h + 0.01 * 10.0 ** (number // 2 + 1)
        m = 0.965 * m + 0.035 * p.grad
        expected = expected * (1 - 0.01 * 0.1) - 0.01 * (m / max(0.5 * h, 1e-15)).clamp(-1, 1)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-6)
    assert len(asked) == 2
    assert "hessian" not in optimizer.state[p]


def test_labels_are_drawn_by_step_for_the_last_microbatch():
    model = small_model()
    optimizer = build_optimizer(small_settings("sophia"), model)
    (hook,) = optimizer_hooks(optimizer, model, BUDGET)
    state = run_state(model, training_batch(rows=2))
    hook.apply(Event.FIT_START, state, None)
    hook.apply(Event.BEFORE_FORWARD, state, None)
    state.batch = None  # Composer restores the whole batch, which is on the CPU
    before, estimates = torch.get_rng_state(), []
    for at in (3, 3, 4):
        state.timestamp = Timestamp(batch=at)
        estimates.append(torch.stack([h.sum() for h in optimizer.curvature(list(model.parameters()))]))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(estimates[0], estimates[1]) and not torch.equal(estimates[1], estimates[2])
