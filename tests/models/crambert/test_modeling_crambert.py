from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from cram_composer.models.crambert.configuration_crambert import CramBertConfig
from cram_composer.models.crambert.modeling_crambert import (
    CramBertForMaskedLM,
    CramBertForMultipleChoice,
    CramBertForQuestionAnswering,
    CramBertForSequenceClassification,
    CramBertForTokenClassification,
    CramBertModel,
)
from tests.models.tiny_models import tiny_config, tiny_model, training_batch


def test_the_published_size():
    with torch.device("meta"):
        model = CramBertForMaskedLM(CramBertConfig())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert abs(parameters / 119.5e6 - 1) < 0.01
    assert len(model.encoder.layers) == 16


def test_published_parts():
    model = tiny_model()
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert all(linear.bias is None for linear in linears)
    # two in each layer, one after the embedding, one at the end
    assert len(norms) == 2 * len(model.encoder.layers) + 2
    assert {norm.eps for norm in norms} == {1e-12}
    layer = model.encoder.layers[0]
    assert tuple(layer.feedforward.w_in.weight.shape) == (32, 16)
    assert tuple(layer.feedforward.w_out.weight.shape) == (16, 16)  # the gate halves 32
    assert model.head.decoder.weight is model.encoder.embeddings.word_embeddings.weight
    assert model.encoder.embeddings.positions.scale.item() == pytest.approx(16**-0.5)


def test_biases_by_config():
    layer = CramBertModel(tiny_config(attention_bias=True, mlp_bias=True)).layers[0]
    assert layer.attention.qkv.bias is not None
    assert layer.attention.out.bias is not None
    assert layer.feedforward.w_in.bias is not None
    assert layer.feedforward.w_out.bias is not None


def test_initialisation_is_normal_with_the_configured_deviation():
    model = tiny_model(hidden_size=64, intermediate_size=256, initializer_range=0.05)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            assert module.weight.std().item() == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("ffn", ["geglu", "gelu"])
@pytest.mark.parametrize("positions", ["scaled-sinusoidal", "sinusoidal", "learned"])
def test_every_part_trains_every_parameter(ffn, positions):
    model = tiny_model(ffn=ffn, positions=positions, attention_bias=True, mlp_bias=True)
    model(**training_batch(length=24)).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    zero = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert not without
    assert not zero


def test_positions_distinguish_equal_tokens():
    hidden = tiny_model().encoder(torch.full((1, 24), 7)).last_hidden_state
    assert not torch.allclose(hidden[0, 0], hidden[0, 23])


def test_sinusoids_match_the_paper():
    table = tiny_model().encoder.embeddings.positions.table
    assert table[3, 4].item() == pytest.approx(torch.sin(torch.tensor(3 / 10000 ** (4 / 16))).item(), abs=1e-6)
    assert table[3, 5].item() == pytest.approx(torch.cos(torch.tensor(3 / 10000 ** (4 / 16))).item(), abs=1e-6)


@pytest.mark.parametrize("length", [1, 7, 24])
def test_shapes_at_any_length(length):
    model = tiny_model()
    input_ids = torch.zeros(2, length, dtype=torch.int64)
    assert model.encoder(input_ids).last_hidden_state.shape == (2, length, 16)
    assert model(input_ids).logits.shape == (2, length, 40)
    assert model(input_ids).loss is None


def test_masked_positions_give_the_dense_loss_and_gradients():
    model, batch = tiny_model(), training_batch()
    dense_labels = torch.full_like(batch["input_ids"], -100)
    for row, column, label in zip(
        torch.arange(3).repeat_interleave(5),
        batch["masked_positions"].flatten(),
        batch["labels"].flatten(),
        strict=True,
    ):
        if label != -100:
            dense_labels[row, column] = label
    sparse = model(**batch)
    sparse.loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    dense = model(batch["input_ids"], labels=dense_labels)
    dense.loss.backward()
    assert sparse.logits.shape == (3, 5, 40)
    torch.testing.assert_close(sparse.loss, dense.loss)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, msg=name)


def test_a_padded_row_equals_a_shorter_row():
    model = tiny_model().eval()
    input_ids = torch.randint(40, (2, 20), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(input_ids)
    mask[:, 12:] = 0
    padded = model(input_ids, attention_mask=mask).logits[:, :12]
    torch.testing.assert_close(padded, model(input_ids[:, :12]).logits)


def test_dropout_is_off_until_configured():
    batch = training_batch()
    model = tiny_model().train()
    assert torch.equal(model(**batch).logits, model(**batch).logits)
    for option in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        model = tiny_model(**{option: 0.5}).train()
        assert not torch.equal(model(**batch).logits, model(**batch).logits)
        model.eval()
        assert torch.equal(model(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_classifier_ignores_padding(pooling):
    model = CramBertForSequenceClassification(tiny_config(num_labels=3, classifier_pooling=pooling)).eval()
    input_ids = torch.randint(40, (2, 10), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(input_ids)
    mask[:, 6:] = 0
    padded = model(input_ids, attention_mask=mask).logits
    assert padded.shape == (2, 3)
    torch.testing.assert_close(padded, model(input_ids[:, :6]).logits)


def test_classifier_losses():
    input_ids = torch.randint(40, (2, 10), generator=torch.Generator().manual_seed(4))
    classifier = CramBertForSequenceClassification(tiny_config(num_labels=3)).eval()
    classes = torch.tensor([0, 2])
    output = classifier(input_ids, labels=classes)
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits, classes))
    regressor = CramBertForSequenceClassification(tiny_config(num_labels=1)).eval()
    scores = torch.tensor([0.5, 4.0])
    output = regressor(input_ids, labels=scores)
    torch.testing.assert_close(output.loss, ((output.logits[:, 0] - scores) ** 2).mean())


@pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
def test_several_classes_per_sentence_have_a_binary_loss_as_in_transformers(problem_type):
    input_ids = torch.randint(5, 40, (2, 10), generator=torch.Generator().manual_seed(4))
    config = tiny_config(num_labels=3, problem_type=problem_type)
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    output = CramBertForSequenceClassification(config).eval()(input_ids, labels=labels)
    torch.testing.assert_close(output.loss, nn.BCEWithLogitsLoss()(output.logits, labels))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = BertForSequenceClassification(BertConfig(**sizes, num_labels=3, problem_type=problem_type)).eval()
    expected = bert(input_ids, labels=labels)
    torch.testing.assert_close(expected.loss, nn.BCEWithLogitsLoss()(expected.logits, labels))


def test_losses_of_tokens_answers_and_choices_by_hand():
    input_ids = torch.randint(5, 40, (2, 10), generator=torch.Generator().manual_seed(4))
    loss_of, pick = nn.functional.cross_entropy, torch.tensor([[True] * 10, [True] * 6 + [False] * 4])
    tags = input_ids % 3
    made = CramBertForTokenClassification(tiny_config(num_labels=3)).eval()(input_ids, labels=tags.where(pick, -100))
    torch.testing.assert_close(made.loss, loss_of(made.logits[pick], tags[pick]))
    start, end = torch.tensor([2, 10]), torch.tensor([[4], [6]])  # the first token of the second answer was cut off
    model = CramBertForQuestionAnswering(tiny_config()).eval()
    made = model(input_ids, start_positions=start, end_positions=end)
    halves = loss_of(made.start_logits[:1], start[:1]), loss_of(made.end_logits, end[:, 0])
    torch.testing.assert_close(made.loss, (halves[0] + halves[1]) / 2)
    chooser, right = CramBertForMultipleChoice(tiny_config()).eval(), torch.tensor([1])
    made = chooser(input_ids[None], labels=right)
    torch.testing.assert_close(made.loss, loss_of(made.logits, right))
    torch.testing.assert_close(made.logits[0, 1:], chooser(input_ids[None, 1:]).logits[0])


def several_documents() -> tuple[torch.Tensor, torch.Tensor]:
    """Build two rows of 20 tokens: documents of 5, 9 and 3 tokens with padding, and one document of 20 tokens."""
    input_ids = torch.randint(5, 40, (2, 20), generator=torch.Generator().manual_seed(3))
    document_ids = torch.zeros_like(input_ids)
    document_ids[0] = torch.tensor([0] * 5 + [1] * 9 + [2] * 3 + [-1] * 3)
    input_ids[0, 17:] = 0
    return input_ids, document_ids


@pytest.mark.parametrize("training", [False, True])
def test_a_token_does_not_see_the_other_documents_of_its_row(training):
    model = tiny_model().train(training)
    input_ids, document_ids = several_documents()
    before = model(input_ids, document_ids=document_ids).logits
    changed = input_ids.clone()
    changed[0, :5] = changed[0, 14:17] = 39
    after = model(changed, document_ids=document_ids).logits
    assert torch.equal(before[0, 5:14], after[0, 5:14])
    assert not torch.equal(before[0, :5], after[0, :5])
    assert not torch.equal(model(input_ids).logits[0, 5:14], model(changed).logits[0, 5:14]), "ids unused"
    changed = input_ids.clone()
    changed[0, 5] = 39
    assert not torch.equal(before[0, 6:14], model(changed, document_ids=document_ids).logits[0, 6:14])


def test_one_document_equals_a_row_without_document_ids_and_padding_a_shorter_row():
    model = tiny_model().eval()
    input_ids, document_ids = several_documents()
    logits = model(input_ids, document_ids=document_ids).logits
    torch.testing.assert_close(logits[1], model(input_ids[1:]).logits[0])
    torch.testing.assert_close(logits[:1, :5], model(input_ids[:1, :5]).logits)
    assert torch.isfinite(logits).all()


def test_rows_of_padding_have_finite_losses_and_gradients():
    model = tiny_model()
    batch = training_batch()
    document_ids = torch.zeros_like(batch["input_ids"])
    document_ids[1] = -1
    batch["labels"][1] = -100
    for extra in ({"document_ids": document_ids}, {"attention_mask": (torch.arange(16) < 1).long().expand(3, 16)}):
        model.zero_grad()
        model(**batch, **extra).loss.backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
