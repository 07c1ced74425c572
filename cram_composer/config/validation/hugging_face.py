"""Checks of `architecture: hf` against the configuration classes of transformers."""

from __future__ import annotations

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from cram_composer.config.messages import did_you_mean
from cram_composer.config.schema.model import SIZES, ModelConfig
from cram_composer.errors import ConfigError


def check_hugging_face(model: ModelConfig) -> None:
    """Reject an unknown model type, unknown keys of its configuration, and a hidden size that heads do not divide.

    Raises:
        ConfigError: one of these.
    """
    name = model.hf_name or ""
    if name not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise ConfigError(
            f"model.hf_name: '{name}' is not a masked LM of transformers"
            f"{did_you_mean(name, MODEL_FOR_MASKED_LM_MAPPING_NAMES)}"
        )
    defaults = AutoConfig.for_model(name)
    known = {**defaults.to_dict(), **dict.fromkeys(defaults.attribute_map)}
    for key in model.hf_overrides:
        if key not in known:
            raise ConfigError(
                f"model.hf_overrides.{key}: {type(defaults).__name__} has no such key{did_you_mean(key, known)}"
            )
    try:
        config = AutoConfig.for_model(name, **{**{size: getattr(model, size) for size in SIZES}, **model.hf_overrides})
    except Exception as error:  # of many kinds, by model type
        problem = " ".join(str(error).split())[:200]
        raise ConfigError(f"model.hf_overrides: {type(defaults).__name__} rejects these values: {problem}") from None
    # Some architectures lack one of them: FNet has no attention.
    width, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    for key, value in (("hidden_size", width), ("num_attention_heads", heads)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ConfigError(f"model.hf_overrides.{key}: must be a positive integer, got {value!r}")
    if width is not None and heads is not None and width % heads:
        raise ConfigError(f"model.hidden_size: {width} is not divisible by num_attention_heads={heads}")
