"""Build the masked LM of a run: CramBERT, or any architecture of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from cram_composer.config.schema.model import SIZES, ModelConfig
from cram_composer.models.crambert.configuration_crambert import CramBertConfig
from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM


def build_model(
    settings: ModelConfig, vocab_size: int, special_token_ids: Mapping[str, int], shift: bool = False
) -> PreTrainedModel:
    """Build a masked LM with fresh weights, in fp32 on the CPU, drawn from torch's global generator.

    Args:
        settings: the `model` section of a run. `architecture: hf` takes `hf_name`, the sizes (SIZES) and
            `hf_overrides`, which take precedence; all other settings are that model's defaults.
        vocab_size: number of tokens in the tokenizer.
        special_token_ids: ids of "pad", "cls" and "sep", as in a data manifest.
        shift: CramBERT predicts a token at the position before it.

    Raises:
        CramError: unknown model type or config key, or sizes that do not divide.
    """
    config = BUILDERS[settings.architecture](settings)
    config.vocab_size = vocab_size
    pad, cls, sep = (special_token_ids[name] for name in ("pad", "cls", "sep"))
    for key, value in (("pad", pad), ("cls", cls), ("sep", sep), ("bos", cls), ("eos", sep)):
        if hasattr(config, f"{key}_token_id"):
            setattr(config, f"{key}_token_id", value)
    if isinstance(config, CramBertConfig):
        config.shift = shift
        model = CramBertForMaskedLM(config)
        model.encoder.residual_in_fp32 = settings.residual_in_fp32
        return model
    model_class: Any = MODEL_FOR_MASKED_LM_MAPPING[type(config)]
    return AutoModelForMaskedLM.from_config(
        config, attn_implementation="sdpa" if model_class._supports_sdpa else "eager"
    )


def _crambert(settings: ModelConfig) -> PretrainedConfig:
    known = inspect.signature(CramBertConfig.__init__).parameters
    config = CramBertConfig(**{key: value for key, value in settings if key in known})
    if settings.mup_base_width is not None:
        # Yang et al. 2022, arXiv 2203.03466, table 8: initial weights scale with 1 / sqrt(fan-in) and logits with
        # 1 / width, relative to the base width. The optimizer scales the rates. The head size must stay the same.
        ratio = settings.mup_base_width / settings.hidden_size
        config.matrix_init_scale, config.logit_scale = ratio**0.5, ratio
    return config


def _hugging_face(settings: ModelConfig) -> PretrainedConfig:
    name = settings.hf_name or ""
    known_keys = {**(defaults := AutoConfig.for_model(name)).to_dict(), **dict.fromkeys(defaults.attribute_map)}
    sizes = {key: getattr(settings, key) for key in SIZES}
    # otherwise ModernBERT compiles parts of itself, whatever the compile mode of the run
    own: dict[str, Any] = {"reference_compile": False} if "reference_compile" in known_keys else {}
    return AutoConfig.for_model(name, **{**own, **sizes, **settings.hf_overrides})


BUILDERS = {"crambert": _crambert, "hf": _hugging_face}
