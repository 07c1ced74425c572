from __future__ import annotations

import pytest
import torch

from cram_composer.config.schema.model import ModelConfig
from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM
from cram_composer.models.factory import build_model
from cram_composer.models.training_model import MaskedLMTrainingModel
from tests.models.tiny_models import SPECIAL, training_batch

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def hf(name: str, **overrides) -> ModelConfig:
    return ModelConfig(architecture="hf", hf_name=name, hf_overrides=overrides)


def test_every_setting_reaches_the_config():
    values = dict(SMALL, norm_eps=1e-6, ffn="gelu", positions="learned", max_position_embeddings=32)
    values |= {"attention_bias": True, "mlp_bias": True, "initializer_range": 0.1}
    settings = ModelConfig(**values)
    model = build_model(settings, 40, SPECIAL)
    assert isinstance(model, CramBertForMaskedLM)
    names = set(ModelConfig.model_fields) - {"architecture", "hf_name", "hf_overrides"}
    # settings of batches and of training
    names -= {"document_masking", "attention_kernel", "loss_kernel", "residual_in_fp32"}
    names -= {"mup_base_width"}  # becomes other settings of the config
    assert {name: getattr(model.config, name) for name in names} == {name: getattr(settings, name) for name in names}
    assert model.config.vocab_size == 40
    assert model.config.pad_token_id == SPECIAL["pad"]


def test_a_seed_decides_the_weights():
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(build_model(ModelConfig(**SMALL), 40, SPECIAL).get_input_embeddings().weight)
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


@pytest.mark.parametrize("name", ["bert", "modernbert", "distilbert", "roberta"])
def test_hugging_face_architectures_train(name):
    sizes = {key: value for key, value in SMALL.items() if key != "intermediate_size"}
    model = build_model(hf(name, **sizes), 40, SPECIAL)
    assert model.config._attn_implementation == "sdpa"
    assert model.config.hidden_size == 16
    assert model.get_input_embeddings().weight.shape[0] == 40
    assert model.config.pad_token_id == SPECIAL["pad"]
    loss = MaskedLMTrainingModel(model)(training_batch()).loss
    loss.backward()
    assert loss.isfinite()


def test_hugging_face_defaults_and_overrides():
    config = build_model(hf("bert", num_hidden_layers=1), 40, SPECIAL).config
    assert (config.num_hidden_layers, config.hidden_size) == (1, 768)
