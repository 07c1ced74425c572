"""Choices of a run that cannot be combined, and keys that nothing reads as the run is configured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from cram_composer.config.schema.model import HF_KEYS, ModelConfig
from cram_composer.config.schema.run import RunConfig
from cram_composer.errors import ConfigError

AVERAGES = ("ema", "swa", "lawa")  # one of them can be what a run evaluates
NORMS = ("fused_layernorm", "low_precision_layernorm")  # one of them can be what computes its norms

_FUNNEL_LAYERS = 5
_NO_FREEZING = {
    "elc": "later layers read what frozen ones add",
    "recurrent": "the lowest layers run again above the others, which then need their gradient",
}

_PARTS_OF_ROWS = ("funnel", "token-dropping")  # stacks some of whose layers see not all of a row

# A key of the model, the key that decides whether it is read, and the values of that key with which it is; none of them
# stands for any value but null.
READ_WITH: list[tuple[str, str, Sequence[str]]] = [
    ("repeats", "stack", ("recurrent",)),
    ("dropped_tokens", "stack", ("token-dropping",)),
    ("norm_bias", "norm", ("layernorm",)),
    ("first_norm", "norm_position", ("pre",)),
    ("final_norm", "norm_position", ("pre", "sandwich")),
    ("rope_theta", "positions", ("rotary",)),
    ("local_rope_theta", "positions", ("rotary",)),
    ("local_rope_theta", "local_window", ()),
    ("global_every", "local_window", ()),
    ("hf_name", "architecture", ("hf",)),
    ("hf_overrides", "architecture", ("hf",)),
    *((spec.name, "architecture", ("crambert",)) for spec in fields(ModelConfig) if spec.name not in HF_KEYS),
]


def check_combinations(config: RunConfig) -> None:
    """Refuse choices that are each right, but not together. Raises ConfigError, one line."""
    model, algorithms = config.model, config.algorithms
    ours = model.architecture == "crambert"
    for alternatives in (AVERAGES, NORMS):
        chosen = [name for name in alternatives if getattr(algorithms, name) is not None]
        if len(chosen) > 1:
            raise ConfigError(f"algorithms: {' and '.join(chosen)} do the same thing; set all but one of them to null")
    averages = [name for name in AVERAGES if getattr(algorithms, name) is not None]
    if averages and config.optimizer.name == "schedule-free":
        raise ConfigError(
            f"algorithms.{averages[0]}: the optimizer schedule-free averages the weights itself, and this would be of "
            f"its training point; use another optimizer or algorithms.{averages[0]}=null"
        )
    if model.mup_base_width != config.optimizer.mup_base_width:
        raise ConfigError(
            f"model.mup_base_width: {model.mup_base_width} and optimizer.mup_base_width: "
            f"{config.optimizer.mup_base_width} must be the same; the recipe mup sets both"
        )
    if algorithms.layer_freezing is not None and ours and model.stack in _NO_FREEZING:
        raise ConfigError(
            f"algorithms.layer_freezing: with model.stack={model.stack} {_NO_FREEZING[model.stack]}; use another stack "
            "or algorithms.layer_freezing=null"
        )
    if algorithms.stochastic_depth is not None:
        if not ours or model.norm_position == "post":
            raise ConfigError(
                "algorithms.stochastic_depth: needs layers that add to a residual stream: CramBERT's, with "
                "model.norm_position=pre or sandwich"
            )
        if config.train.compile == "full":
            raise ConfigError(
                "algorithms.stochastic_depth: train.compile=full would make a graph for every choice of layers; use "
                "train.compile=regional"
            )
    if algorithms.label_smoothing is not None and not ours:
        raise ConfigError(
            "algorithms.label_smoothing: a model of transformers computes its own loss, which cannot be smoothed; use "
            "model.architecture=crambert or algorithms.label_smoothing=null"
        )
    if ours and model.stack == "funnel" and model.num_hidden_layers < _FUNNEL_LAYERS:
        raise ConfigError(
            f"model.num_hidden_layers: {model.num_hidden_layers} are too few for a funnel: three stages and two layers "
            f"after them need {_FUNNEL_LAYERS}"
        )
    if ours and model.short_convolution and model.stack in _PARTS_OF_ROWS:
        raise ConfigError(
            f"model.short_convolution: layers of model.stack={model.stack} see parts of rows, where neighbours are not "
            "beside each other; use another stack or model.short_convolution=0"
        )
    if ours and model.attention_kernel in ("flex", "flash"):
        _check_attention(config)
    if model.architecture == "hf" and model.hf_name is None:
        raise ConfigError("model.hf_name: architecture hf needs a model type, such as model.hf_name=bert")
    if model.architecture == "hf" and model.document_masking:
        raise ConfigError("model.document_masking: architecture hf cannot do it; use architecture crambert or false")


def _check_attention(config: RunConfig) -> None:
    model = config.model
    kernel = f"model.attention_kernel: {model.attention_kernel}"
    if model.stack in _PARTS_OF_ROWS:
        raise ConfigError(
            f"{kernel} masks whole rows, and the layers of model.stack={model.stack} see parts of them; use sdpa or "
            "another stack"
        )
    if model.attention_kernel == "flex" and model.attention_probs_dropout_prob:
        raise ConfigError(f"{kernel} has no dropout; use model.attention_probs_dropout_prob=0 or another kernel")
    if model.attention_kernel == "flash" and config.objective.causal_fraction:
        raise ConfigError(
            f"{kernel} takes all rows as causal or none; use flex or sdpa, or objective.causal_fraction=0"
        )


def check_read(plain: dict[str, Any], provenance: Mapping[str, str], layers: Sequence[str]) -> None:
    """Refuse a key of the model that nothing reads, unless what decides that was changed after it was set.

    `layers` are the sources of a configuration from the first to the last that is merged: a preset's rotary base does
    not keep anybody from taking ALiBi instead, but who asks for both at once has made a mistake.

    Raises:
        ConfigError: one line.
    """
    age = {layer: number for number, layer in enumerate(layers)}
    for key, decider, values in READ_WITH:
        value = plain["model"][decider]
        if value is not None and (not values or value in values):
            continue
        source, decided = (_source(provenance, f"model.{name}") or layers[0] for name in (key, decider))
        if age[source] > 0 and age[source] >= age[decided]:
            use = f"it takes model.{decider}={' or '.join(values)}" if values else f"it takes model.{decider}"
            raise ConfigError(
                f"{source}: model.{key}: nothing reads it with model.{decider}={'null' if value is None else value}; "
                f"{use}, or leave it out"
            )


def _source(provenance: Mapping[str, str], key: str) -> str | None:
    """The layer that a key is from; a dictionary is from that of what is in it."""
    return next((layer for name, layer in provenance.items() if name == key or name.startswith(f"{key}.")), None)
