"""The checks that transformers makes of its own models, for every class of CramBERT and several architectures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from cram_composer.models.crambert import modeling_crambert
from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM, CramBertModel
from tests.models.tiny_models import tiny_config

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "crammed": {},
    "modern": {"positions": "rotary", "local_window": 6, "norm": "rmsnorm", "qk_norm": True, "attention_gate": True},
    "bert": {"norm_position": "post", "ffn": "gelu", "positions": "learned", "attention_bias": True, "mlp_bias": True,
             "head_transform": True, "head_bias": True},
    "unusual": {"stack": "elc", "positions": "alibi", "value_embeddings": 1, "short_convolution": 3},
}  # fmt: skip
CLASSES = ["Model", *(f"For{task}" for task in ("MaskedLM", "MultipleChoice", "QuestionAnswering",
                                                "SequenceClassification", "TokenClassification"))]  # fmt: skip
LENGTH, LAYERS = 12, 3


@pytest.fixture(params=ARCHITECTURES)
def architecture(request) -> str:
    return request.param


@pytest.fixture(params=CLASSES)
def model(request, architecture) -> PreTrainedModel:
    return build(request.param, architecture)


def build(name: str, architecture: str, **changes) -> PreTrainedModel:
    """Build a model in evaluation mode whose weights are large enough for every part to have an effect."""
    torch.manual_seed(0)
    config = tiny_config(**{"num_hidden_layers": LAYERS, "num_labels": 3, **ARCHITECTURES[architecture], **changes})
    made = getattr(modeling_crambert, f"CramBert{name}")(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.eval()


def inputs(model: PreTrainedModel, labels: bool = False) -> dict[str, torch.Tensor]:
    """Build two rows, or two pairs of choices, of which the second is padded."""
    name, generator = type(model).__name__, torch.Generator().manual_seed(1)
    shape = (2, 2, LENGTH) if name.endswith("MultipleChoice") else (2, LENGTH)
    made = {"input_ids": torch.randint(5, 40, shape, generator=generator), "attention_mask": torch.ones(shape).long()}
    made["attention_mask"][1, ..., 8:] = 0
    if labels and name.endswith("QuestionAnswering"):
        made |= {"start_positions": torch.tensor([2, 99]), "end_positions": torch.tensor([4, 6])}
    elif labels and not name.endswith("Model"):
        per_token = name.endswith(("MaskedLM", "TokenClassification"))
        made["labels"] = made["input_ids"] % 3 if per_token else torch.tensor([1, 0])
    return made


def result(model: PreTrainedModel, **given: torch.Tensor) -> torch.Tensor:
    """Return the first output that is no loss, zero where it belongs to padding."""
    with torch.no_grad():
        made = model(**given)[0]
    mask = given["attention_mask"]
    if made.shape[:2] != mask.shape or made.ndim == mask.ndim == 3:
        return made
    return made * mask.view(mask.shape + (1,) * (made.ndim - 2))


def test_hidden_states_and_attentions(model):
    given = inputs(model)
    made = model(**given, output_hidden_states=True, output_attentions=True)
    rows = given["input_ids"].flatten(0, -2).shape[0]
    assert [tuple(hidden.shape) for hidden in made.hidden_states] == [(rows, LENGTH, 16)] * (LAYERS + 1)
    assert [tuple(weights.shape) for weights in made.attentions] == [(rows, 2, LENGTH, LENGTH)] * LAYERS
    visible = given["attention_mask"].flatten(0, -2)[:, None, :, None].expand(made.attentions[0].shape).bool()
    for weights in made.attentions:
        assert torch.allclose(weights.sum(-1), torch.ones(()))
        assert not weights.transpose(-1, -2)[~visible & visible.transpose(-1, -2)].any(), "tokens see padding"
    last = model.base_model(**{name: tensor.flatten(0, -2) for name, tensor in given.items()}).last_hidden_state
    assert torch.allclose(made.hidden_states[-1], last, atol=1e-5)
    plain = model(**given)
    assert plain.hidden_states is plain.attentions is None
    assert torch.allclose(plain[0], made[0], atol=1e-5), "outputs must not depend on what else is returned"
    model.config.output_hidden_states = True
    assert len(model(**given).hidden_states) == LAYERS + 1
    for kept in (made.hidden_states[0], made.attentions[0]):
        kept.retain_grad()
    made[0].flatten()[0].backward()
    assert made.hidden_states[0].grad.any() and made.attentions[0].grad is not None


def test_tuples_hold_what_dictionaries_hold(model):
    given = inputs(model, labels=True)
    with torch.no_grad():
        expected = model(**given, output_hidden_states=True).to_tuple()
        for made in (model(**given, output_hidden_states=True, return_dict=False), as_configured(model, given)):
            assert isinstance(made, tuple) and len(made) == len(expected)
            for part, whole in zip(made, expected, strict=True):
                torch.testing.assert_close(part, whole)


def as_configured(model: PreTrainedModel, given: dict[str, torch.Tensor]) -> Any:
    model.config.return_dict, model.config.output_hidden_states = False, True
    return model(**given)


def test_a_batch_equals_its_rows_and_padding_has_no_effect(model):
    given = inputs(model)
    together = result(model, **given)
    for row in range(2):
        alone = result(model, **{name: tensor[row : row + 1] for name, tensor in given.items()})
        torch.testing.assert_close(alone[0], together[row])
    other = {**given, "input_ids": given["input_ids"].where(given["attention_mask"].bool(), 7)}
    if not type(model).__name__.endswith("QuestionAnswering"):  # has logits of padding
        assert torch.equal(result(model, **other), together)
    types = torch.ones_like(given["input_ids"])
    assert torch.equal(result(model, **given, token_type_ids=types), together)


@pytest.mark.parametrize("architecture", ["modern", "unusual"], indirect=True)
def test_relative_positions_allow_padding_on_the_left(architecture):
    model = build("Model", architecture)
    ids = inputs(model)["input_ids"][:, :8]
    padding = torch.zeros(2, 4).long()
    mask = torch.cat((padding, torch.ones_like(ids)), dim=1)
    padded = model(torch.cat((padding, ids), dim=1), attention_mask=mask).last_hidden_state
    torch.testing.assert_close(padded[:, 4:], model(ids).last_hidden_state)


def test_embeddings_replace_ids(model):
    given = inputs(model)
    embedded = {
        "inputs_embeds": model.get_input_embeddings()(given["input_ids"]),
        "attention_mask": given["attention_mask"],
    }
    if model.config.value_embeddings:
        with pytest.raises(ValueError, match="inputs_embeds: .*give input_ids"):
            model(**embedded)
    else:
        torch.testing.assert_close(model(**embedded)[0], model(**given)[0])
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(attention_mask=given["attention_mask"])
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(given["input_ids"], **embedded)


def test_saved_models_reload(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, found = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    torch.testing.assert_close(loaded(**inputs(model))[0], model(**inputs(model))[0], rtol=0, atol=0)


def test_heads_start_from_the_configured_deviation(architecture, tmp_path):
    trained = build("ForMaskedLM", architecture)
    trained.save_pretrained(tmp_path)
    for name in CLASSES[2:]:
        loaded, found = getattr(modeling_crambert, f"CramBert{name}").from_pretrained(
            tmp_path, hidden_dropout_prob=0.0, output_loading_info=True
        )
        assert {key.split(".")[0] for key in found["missing_keys"]} == {"classifier"}, name
        for kind, parameter in loaded.classifier.named_parameters():
            if kind.endswith("weight"):
                assert 0.5 < parameter.std() / loaded.config.initializer_range < 1.6, name
            else:
                assert not parameter.any(), name
        assert all(map(torch.equal, loaded.base_model.parameters(), trained.encoder.parameters())), name


def test_gradient_checkpointing_gives_the_same_gradients(model):
    given = inputs(model, labels=True)
    calls = []
    model.base_model.layers[1].attention.register_forward_hook(lambda *_: calls.append(1))

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        made = model(**given)[0]
        (made if made.ndim == 0 else made.square().mean()).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    expected, once = gradients(), len(calls)
    model.train()
    model.gradient_checkpointing_enable()
    found = gradients()
    assert len(calls) - once == 2 * once, "layers run again in the backward pass"
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
    model.gradient_checkpointing_disable()
    gradients()
    assert len(calls) == 4 * once


def test_vocabularies_grow(model):
    before = result(model, **inputs(model))
    resized = model.resize_token_embeddings(48)
    assert model.get_input_embeddings() is resized and resized.num_embeddings == model.config.vocab_size == 48
    after = result(model, **inputs(model))
    torch.testing.assert_close(after[..., :40], before)
    assert torch.isfinite(result(model, **{**inputs(model), "input_ids": inputs(model)["input_ids"] + 8})).all()
    if isinstance(model, CramBertForMaskedLM):
        assert model.get_output_embeddings().weight is resized.weight
        assert after.shape[-1] == 48


def test_decoders_are_tied_only_as_configured(architecture, tmp_path):
    for tied in (True, False):
        model = build("ForMaskedLM", architecture, tie_word_embeddings=tied)
        model.save_pretrained(tmp_path / str(tied))
        loaded = CramBertForMaskedLM.from_pretrained(tmp_path / str(tied))
        for made in (model, loaded):
            shared = made.get_output_embeddings().weight is made.get_input_embeddings().weight
            assert shared == tied
        assert torch.equal(model.head.decoder.weight, loaded.head.decoder.weight)


def test_attention_by_name_devices_and_half_precision(architecture, tmp_path):
    model = build("Model", architecture)
    model.save_pretrained(tmp_path)
    given = inputs(model)
    expected = result(model, **given)
    eager = CramBertModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.config._attn_implementation == "eager" and model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(result(eager, **given), expected, rtol=1e-4, atol=1e-5)
    placed = CramBertModel.from_pretrained(tmp_path, device_map="auto")  # only for classes that name their layers
    torch.testing.assert_close(result(placed, **given), expected)
    half = CramBertModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    made = result(half, **given)
    assert made.dtype == torch.bfloat16
    assert (made.float() - expected).abs().mean() < 0.03 * expected.abs().mean()
    with pytest.raises(ValueError, match=r"(?i)flash"):
        CramBertModel.from_pretrained(tmp_path, attn_implementation="flash_attention_2")


@pytest.mark.parametrize(("name", "architecture"), [("ForMaskedLM", "modern"), ("ForTokenClassification", "unusual")])
def test_models_compile_as_one_graph(name, architecture):
    model = build(name, architecture)
    torch._dynamo.reset()  # all models of transformers share a limit
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs(model))[0], model(**inputs(model))[0])


def test_models_export_with_dynamic_shapes(architecture):
    model = build("ForMaskedLM", architecture)
    batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", min=2, max=24)
    shapes = {name: {0: batch, 1: length} for name in ("input_ids", "attention_mask")}
    program = torch.export.export(model, (), inputs(model), dynamic_shapes=shapes, strict=False).module()
    other = {"input_ids": torch.randint(5, 40, (5, 17)), "attention_mask": torch.ones(5, 17).long()}
    other["attention_mask"][3, 5:] = 0
    torch.testing.assert_close(program(**other).logits, model(**other).logits)
