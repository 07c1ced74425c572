"""Short convolutions and their visible neighbours."""

from __future__ import annotations

import pytest
import torch

from cram_composer.config.schema.model import ModelConfig
from cram_composer.models.crambert.convolution import ShortConvolution, visible_neighbours
from tests.models.crambert.test_architecture import check_that_documents_and_padding_cut_rows, influence, logits, model
from tests.models.tiny_models import tiny_config, training_batch


@pytest.mark.parametrize("size", [3, 5])
def test_it_equals_torchs_depthwise_convolution_plus_its_input(size: int):
    config = tiny_config(short_convolution=size)
    ours, hidden = ShortConvolution(config), torch.randn(2, 9, config.hidden_size)
    theirs = torch.nn.Conv1d(
        config.hidden_size, config.hidden_size, size, padding=size // 2, groups=config.hidden_size, bias=False
    )
    with torch.no_grad():
        theirs.weight.copy_(ours.weight.view(size, 1, -1).permute(2, 1, 0))
    expected = hidden + theirs(hidden.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(ours(hidden, None), expected)


def test_it_is_initialized_as_torchs_and_stored_as_a_vector():
    convolution = ShortConvolution(tiny_config(short_convolution=3))
    assert convolution.weight.ndim == 1
    assert 0.5 < float(convolution.weight.abs().max()) <= 3**-0.5


def test_neighbours_by_hand():
    documents = torch.tensor([[0, 0, 1, -1]])
    assert visible_neighbours(3, None, documents, None).int().tolist() == [[[0, 1, 1], [1, 1, 0], [0, 1, 0], [0, 1, 0]]]
    padded = torch.tensor([[1, 1, 1, 0]])
    assert visible_neighbours(3, padded, None, None).int().tolist() == [[[0, 1, 1], [1, 1, 1], [1, 1, 0], [0, 1, 0]]]
    causal = torch.tensor([True, False])
    assert visible_neighbours(5, None, None, causal).int().tolist() == [[[1, 1, 1, 0, 0]], [[1, 1, 1, 1, 1]]]
    both = visible_neighbours(3, padded.expand(2, 4), None, causal).int()
    assert both[0].tolist() == [[0, 1, 0], [1, 1, 0], [1, 1, 0], [0, 1, 0]]
    assert both[1].tolist() == [[0, 1, 1], [1, 1, 1], [1, 1, 0], [0, 1, 0]]
    assert visible_neighbours(3, None, None, None) is None


def test_without_positions_only_the_convolution_depends_on_order():
    ids = training_batch()["input_ids"]
    swapped = ids.clone()
    swapped[:, [3, 9]] = swapped[:, [9, 3]]
    plain, convolved = model(positions="none"), model(positions="none", short_convolution=3)
    assert torch.allclose(logits(plain, ids)[:, 12], logits(plain, swapped)[:, 12], atol=1e-5)
    assert not torch.allclose(logits(convolved, ids)[:, 12], logits(convolved, swapped)[:, 12], atol=1e-4)


def test_nothing_crosses_documents_padding_or_time():
    made = model(short_convolution=5)
    check_that_documents_and_padding_cut_rows(made)
    causal = torch.tensor([True, False, True])
    seen = influence(made, 7, causal=causal)
    assert not seen[causal, :7].any()
    assert seen[1].all()


def test_an_even_size_is_rejected():
    with pytest.raises(ValueError, match="short_convolution: must be odd or 0, got 4"):
        ModelConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, short_convolution=4)
