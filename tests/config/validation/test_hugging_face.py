"""`architecture: hf` is checked against the configuration classes of transformers."""

from __future__ import annotations

import pytest

from cram_composer.config.schema.model import ModelConfig
from cram_composer.config.validation.hugging_face import check_hugging_face
from cram_composer.errors import ConfigError


def hf(name: str, **overrides) -> ModelConfig:
    return ModelConfig(architecture="hf", hf_name=name, hf_overrides=overrides)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (hf("modernbrt"), "model.hf_name: 'modernbrt' is not a masked LM .* 'modernbert'"),
        (hf("gpt2"), "model.hf_name: 'gpt2' is not a masked LM"),
        (hf("bert", hiden_size=16), "model.hf_overrides.hiden_size: BertConfig has no such key; .* 'hidden_size'"),
        (hf("bert", hidden_size=100), "hidden_size: 100 is not divisible by num_attention_heads=12"),
    ],
)
def test_mistakes_are_one_clear_line(model: ModelConfig, message: str):
    with pytest.raises(ConfigError, match=message) as error:
        check_hugging_face(model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["bert", "modernbert", "fnet"])
def test_architectures_with_their_own_sizes_pass(name: str):
    check_hugging_face(hf(name))
