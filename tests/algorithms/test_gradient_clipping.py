"""Gradient clipping by value, by norm and adaptively."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from composer.algorithms import GradientClipping
from composer.core import Event
from torch import nn

from cram_composer.algorithms.gradient_clipping import AdaptiveGradientClipping, clip_adaptively, gradient_clipping
from cram_composer.config.schema.algorithms import GradientClippingConfig
from cram_composer.config.schema.objective import ReplacedTokenConfig
from cram_composer.models.replaced_tokens import ReplacedTokenDetector
from cram_composer.models.training_model import MaskedLMTrainingModel
from tests.models.tiny_models import tiny_model, training_batch


def unknown() -> None:
    """Return None, for a step whose norm is not known."""


def with_gradients(*shapes: tuple[int, ...], scale: float = 1.0) -> list[nn.Parameter]:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for p in parameters:
        p.grad = torch.randn_like(p) * scale
    return parameters


def test_rows_are_clipped_as_in_the_paper():
    threshold, smallest = 0.01, 1e-3
    (matrix,) = with_gradients((5, 7))
    with torch.no_grad():
        matrix[1] = 0.0  # its norm is clamped to `smallest`
    matrix.grad[2] *= 1e-6  # below the limit
    matrix.grad[3] = 0.0
    before = matrix.grad.clone()
    clip_adaptively([matrix], threshold)
    for row in range(5):  # equation 3 of the paper, row by row
        g, w = float(before[row].norm()), max(float(matrix[row].norm()), smallest)
        expected = before[row] * (threshold * w / g if g / w > threshold and g else 1.0)
        torch.testing.assert_close(matrix.grad[row], expected)
    assert torch.equal(matrix.grad[2], before[2])


def test_a_vector_and_a_scalar_are_one_row_each():
    vector, scalar = with_gradients((6,), (), scale=100.0)
    clip_adaptively([vector, scalar, nn.Parameter(torch.ones(2))], 0.01)  # one has no gradient
    for p in (vector, scalar):
        assert float(p.grad.norm()) == pytest.approx(0.01 * float(p.norm()))


def test_weights_that_start_at_zero_get_a_gradient():
    """With Composer's version, weights that start at zero never change."""
    norm = nn.LayerNorm(4)
    norm(torch.randn(8, 4)).pow(3).sum().backward()
    clip_adaptively(norm.parameters(), 0.01)
    assert 0.0 < float(norm.bias.grad.norm()) <= 0.01 * 1e-3 * 1.0001


@pytest.mark.parametrize("objective", [None, "shared", "separate"])
def test_no_decoder_is_clipped(objective: str | None):
    network, batch = tiny_model(), training_batch()
    not_clipped = {"model.encoder.embeddings.word_embeddings.weight"}
    if objective is not None:
        detection = ReplacedTokenConfig(name="rtd", embeddings=objective, corrective_masks=0.5)
        network = ReplacedTokenDetector(network.config, detection)
        shape = batch["labels"].shape
        batch |= {"draws": torch.rand(shape), "kept": torch.rand(shape) < 0.5}
        if objective == "separate":
            not_clipped.add("model.generator.encoder.embeddings.word_embeddings.weight")
    model = MaskedLMTrainingModel(network)
    algorithm = gradient_clipping(GradientClippingConfig(clipping_type="adaptive", clipping_threshold=1e-9), unknown)
    assert isinstance(algorithm, AdaptiveGradientClipping)
    state = SimpleNamespace(model=model)
    algorithm.apply(Event.INIT, state, None)
    model(batch).loss.backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert algorithm.match(Event.AFTER_TRAIN_BATCH, state)
    algorithm.apply(Event.AFTER_TRAIN_BATCH, state, None)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p.grad, before[name])}
    assert before.keys() - changed == not_clipped


@pytest.mark.parametrize(("kind", "norm"), [("norm", lambda g: g.norm()), ("value", lambda g: g.abs().max())])
def test_other_types_equal_composers(kind: str, norm):
    algorithm = gradient_clipping(GradientClippingConfig(clipping_type=kind, clipping_threshold=0.5), unknown)
    assert isinstance(algorithm, GradientClipping)
    model = nn.Linear(30, 1, bias=False)
    model.weight.grad = torch.randn(1, 30) * 10
    state = SimpleNamespace(model=model, fsdp_config_version=0)
    algorithm.apply(Event.AFTER_TRAIN_BATCH, state, None)
    assert float(norm(model.weight.grad)) == pytest.approx(0.5, rel=1e-4)


def test_a_known_norm_is_not_computed_again():
    computed, known = nn.Linear(30, 4), nn.Linear(30, 4)
    for model in (computed, known):
        torch.manual_seed(1)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
    norm = nn.utils.get_total_norm([p.grad for p in known.parameters()])
    config = GradientClippingConfig(clipping_type="norm", clipping_threshold=0.5)
    for model, found in ((computed, None), (known, norm)):
        optimizer = torch.optim.SGD(model.parameters())
        state = SimpleNamespace(model=model, optimizers=[optimizer], fsdp_config_version=0)
        gradient_clipping(config, lambda found=found: found).apply(Event.AFTER_TRAIN_BATCH, state, None)
    assert torch.equal(known.weight.grad, computed.weight.grad)
    with_another = SimpleNamespace(optimizers=[torch.optim.SGD(known.parameters())])
    gradient_clipping(config, lambda: torch.tensor(2.0)).apply(Event.AFTER_TRAIN_BATCH, with_another, None)
    torch.testing.assert_close(known.weight.grad, computed.weight.grad / 4)
