"""Build the masked LM of a run: CramBERT, or any architecture of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from cram_composer.config.schema.model import SIZES, ModelConfig
from cram_composer.config.schema.objective import MaskedLMConfig, ObjectiveConfig, ReplacedTokenConfig
from cram_composer.errors import CramError
from cram_composer.models.crambert.configuration_crambert import CramBertConfig
from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM
from cram_composer.models.replaced_tokens import ReplacedTokenDetector

_MASKED_LM = MaskedLMConfig()


def build_model(
    settings: ModelConfig,
    vocab_size: int,
    special_token_ids: Mapping[str, int],
    objective: ObjectiveConfig = _MASKED_LM,
) -> PreTrainedModel:
    """Build the network of an objective with fresh weights, in fp32 on the CPU, drawn from torch's global generator.

    Args:
        settings: the `model` section of a run. `architecture: hf` takes `hf_name`, the sizes (SIZES) and
            `hf_overrides`, which take precedence; all other settings are that model's defaults.
        vocab_size: number of tokens in the tokenizer.
        special_token_ids: ids of "pad", "cls" and "sep", as in a data manifest.
        objective: masked-language modelling gives a masked LM; with `shift`, CramBERT predicts a token at the position
            before it. Replaced-token detection gives a ReplacedTokenDetector.

    Raises:
        CramError: sizes that the model type rejects.
    """
    config = BUILDERS[settings.architecture](settings)
    config.vocab_size = vocab_size
    pad, cls, sep = (special_token_ids[name] for name in ("pad", "cls", "sep"))
    for key, value in (("pad", pad), ("cls", cls), ("sep", sep), ("bos", cls), ("eos", sep)):
        if hasattr(config, f"{key}_token_id"):
            setattr(config, f"{key}_token_id", value)
    if isinstance(config, CramBertConfig):
        config.shift = objective.shift
        if isinstance(objective, ReplacedTokenConfig):
            detector = ReplacedTokenDetector(config, objective)
            detector.generator.encoder.residual_in_fp32 = settings.residual_in_fp32
            model: CramBertForMaskedLM = detector
        else:
            model = CramBertForMaskedLM(config)
        model.encoder.residual_in_fp32 = settings.residual_in_fp32
        return model
    model_class: Any = MODEL_FOR_MASKED_LM_MAPPING[type(config)]
    attention = "sdpa" if model_class._supports_sdpa else "eager"
    generator = torch.get_rng_state()
    try:
        model = AutoModelForMaskedLM.from_config(config, attn_implementation=attention)
        if (reserved := reserved_positions(model)) and "max_position_embeddings" not in settings.hf_overrides:
            config.max_position_embeddings = settings.max_position_embeddings + reserved
            torch.set_rng_state(generator)
            model = AutoModelForMaskedLM.from_config(config, attn_implementation=attention)
    except Exception as error:  # of many kinds, by model type
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CramError(f"model.hf_name: '{settings.hf_name}' rejects these sizes: {problem}") from None
    return model


def reserved_positions(model: PreTrainedModel) -> int:
    """Return the positions before that of the first token: RoBERTa and its kind start behind the padding id."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.padding_idx) + 1
    return 0


def longest_input(model: PreTrainedModel) -> int | None:
    """Return the number of tokens that a model has positions for; None if its configuration does not say."""
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    return None if positions is None or positions <= 0 else positions - reserved_positions(model)


def check_rows(model: PreTrainedModel, length: int) -> None:
    """Run a row of `length` tokens through a model of transformers.

    Raises:
        CramError: it has no positions for them, or is no masked LM of text alone.
    """
    name = model.config.model_type
    limit = longest_input(model)
    if limit is not None and limit < length:
        raise CramError(
            f"model.hf_overrides.max_position_embeddings: {model.config.max_position_embeddings} leaves '{name}' "
            f"positions for {limit} tokens, but the rows of the data have {length}; raise or remove it"
        )
    row = torch.full((1, length), model.config.vocab_size - 1)
    training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            found = model(input_ids=row, labels=row)
            problem = None if found.logits.shape[:2] == row.shape and found.loss.ndim == 0 else "it predicts no tokens"
    except Exception as error:  # of many kinds, by model type
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    model.train(training)
    if problem is not None:
        raise CramError(f"model.hf_name: '{name}' cannot be trained on rows of {length} tokens: {problem}")


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
