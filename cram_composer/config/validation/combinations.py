"""Checks for choices that cannot be combined, and for keys that have no effect in a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cram_composer.config.messages import set_in
from cram_composer.config.schema.model import HF_KEYS, ModelConfig
from cram_composer.config.schema.objective import ReplacedTokenConfig
from cram_composer.config.schema.run import RunConfig
from cram_composer.errors import ConfigError

AVERAGES = ("ema", "swa", "lawa")  # a run evaluates at most one of them
NORMS = ("fused_layernorm", "low_precision_layernorm")  # at most one of them computes the norms

_NO_FREEZING = {
    "elc": "later layers read the outputs of frozen layers",
    "recurrent": "the lowest layers run again above the others and need their gradient",
}

_PARTS_OF_ROWS = ("funnel", "token-dropping")  # stacks with layers that see only a part of a row

# A key of the model, the key that decides whether it has an effect, and the values that do; (): any but null.
USED_WITH: list[tuple[str, str, Sequence[str]]] = [
    ("repeats", "stack", ("recurrent",)),
    ("dropped_tokens", "stack", ("token-dropping",)),
    ("norm_bias", "norm", ("layernorm",)),
    ("first_norm", "norm_position", ("pre", "sandwich")),
    ("final_norm", "norm_position", ("pre", "sandwich")),
    ("rope_theta", "positions", ("rotary",)),
    ("local_rope_theta", "positions", ("rotary",)),
    ("local_rope_theta", "local_window", ()),
    ("global_every", "local_window", ()),
    ("hf_name", "architecture", ("hf",)),
    ("hf_overrides", "architecture", ("hf",)),
    *((name, "architecture", ("crambert",)) for name in ModelConfig.model_fields if name not in HF_KEYS),
]


def check_combinations(config: RunConfig) -> None:
    """Reject choices that are valid alone but not together. Raises ConfigError."""
    model, algorithms, objective = config.model, config.algorithms, config.objective
    is_crambert = model.architecture == "crambert"
    for alternatives in (AVERAGES, NORMS):
        chosen = [name for name in alternatives if getattr(algorithms, name) is not None]
        if len(chosen) > 1:
            raise ConfigError(f"algorithms: {' and '.join(chosen)} exclude each other; set all but one of them to null")
    averages = [name for name in AVERAGES if getattr(algorithms, name) is not None]
    if averages and config.optimizer.name == "schedule-free":
        raise ConfigError(
            f"algorithms.{averages[0]}: optimizer schedule-free averages the weights itself; choose another optimizer "
            f"or set algorithms.{averages[0]}=null"
        )
    if is_crambert and model.mup_base_width is not None and not config.optimizer.supports_mup:
        raise ConfigError(
            f"model.mup_base_width: muP has no rule for optimizer {config.optimizer.name}; choose adamw or a "
            "similar one, or set model.mup_base_width=null"
        )
    if algorithms.layer_freezing is not None and is_crambert and model.stack in _NO_FREEZING:
        raise ConfigError(
            f"algorithms.layer_freezing: with model.stack={model.stack} {_NO_FREEZING[model.stack]}; choose another "
            "stack or set algorithms.layer_freezing=null"
        )
    if algorithms.stochastic_depth is not None:
        _check_stochastic_depth(config)
    if algorithms.label_smoothing is not None and not is_crambert:
        raise ConfigError(
            "algorithms.label_smoothing: models of transformers compute their own loss; set "
            "model.architecture=crambert or algorithms.label_smoothing=null"
        )
    if is_crambert and model.short_convolution and model.stack in _PARTS_OF_ROWS:
        raise ConfigError(
            f"model.short_convolution: layers of model.stack={model.stack} see parts of rows, where adjacent "
            "tokens are not neighbours; choose another stack or set model.short_convolution=0"
        )
    if objective.has_causal_rows and model.stack == "funnel":
        raise ConfigError(
            "objective.causal_fraction: model.stack=funnel averages pairs of tokens, so a causal row would see the "
            "token it predicts; choose another stack or remove objective.causal_fraction"
        )
    if objective.shift and not is_crambert:
        raise ConfigError(
            "objective.shift: models of transformers predict a token at its own position; set "
            "model.architecture=crambert or objective.shift=false"
        )
    if objective.adapt_every and is_crambert and model.loss_kernel != "full":
        raise ConfigError(
            f"objective.adapt_every: model.loss_kernel={model.loss_kernel} never holds the logits that tell which "
            "tokens were predicted; set model.loss_kernel=full or objective.adapt_every=null"
        )
    if isinstance(objective, ReplacedTokenConfig):
        _check_replaced_tokens(config)
    if is_crambert and model.mup_base_width is not None and model.embedding_size is not None:
        raise ConfigError(
            "model.mup_base_width: muP has no rule for the projections of model.embedding_size; set one of them to null"
        )
    if model.document_masking and model.stack == "funnel":
        raise ConfigError(
            "model.document_masking: model.stack=funnel averages pairs of tokens across documents; "
            "choose another stack or set model.document_masking=false"
        )
    if model.document_masking and not is_crambert:
        raise ConfigError(
            "model.document_masking: requires model.architecture=crambert; set that or model.document_masking=false"
        )
    if is_crambert and not model.residual_in_fp32 and config.train.precision in ("fp32", "fp16"):
        raise ConfigError(
            "model.residual_in_fp32: false needs train.precision=bf16 or auto; set one of these or "
            "model.residual_in_fp32=true"
        )
    if is_crambert and model.attention_kernel in ("flex", "flash"):
        _check_attention(config)


def _check_replaced_tokens(config: RunConfig) -> None:
    reasons = {
        "model.architecture: hf": (config.model.architecture == "hf", "the generator is a CramBERT like the encoder"),
        "model.loss_kernel": (
            config.model.architecture == "crambert" and config.model.loss_kernel != "full",
            "the generator samples from all its logits, which only the kernel full forms",
        ),
        "model.mup_base_width": (config.model.mup_base_width is not None, "the generator has another width"),
        "optimizer.name": (config.optimizer.name == "sophia", "Sophia estimates the curvature of a masked LM's loss"),
        "optimizer.groups.layer_lr_decay": (
            config.optimizer.groups.layer_lr_decay != 1.0, "the layers of two networks have no common order",
        ),
        "algorithms.label_smoothing": (config.algorithms.label_smoothing is not None, "samples need sharp predictions"),
        "train.early_stop.loss_above": (
            config.train.early_stop is not None and config.train.early_stop.loss_above is not None,
            "the loss is a weighted sum of two",
        ),
    }  # fmt: skip
    for key, (applies, reason) in reasons.items():
        if applies:
            raise ConfigError(
                f"{key}: excludes objective.name=rtd, because {reason}; set objective.name=mlm or reset it"
            )


def _check_stochastic_depth(config: RunConfig) -> None:
    if config.model.architecture != "crambert" or config.model.norm_position == "post":
        raise ConfigError(
            "algorithms.stochastic_depth: requires layers that add to a residual stream; set "
            "model.architecture=crambert and model.norm_position=pre or sandwich"
        )
    if config.train.compile == "full":
        raise ConfigError(
            "algorithms.stochastic_depth: train.compile=full would compile a graph for every choice of layers; set "
            "train.compile=regional"
        )


def _check_attention(config: RunConfig) -> None:
    model = config.model
    kernel = f"model.attention_kernel: {model.attention_kernel}"
    if model.stack in _PARTS_OF_ROWS:
        raise ConfigError(
            f"{kernel} masks whole rows, but layers of model.stack={model.stack} see parts of them; set sdpa or choose "
            "another stack"
        )
    if model.attention_kernel == "flex" and model.attention_probs_dropout_prob:
        raise ConfigError(f"{kernel} has no dropout; set model.attention_probs_dropout_prob=0 or another kernel")
    if model.attention_kernel == "flash" and config.objective.has_causal_rows:
        raise ConfigError(
            f"{kernel} treats either all rows or none as causal; set flex or sdpa, or remove the causal rows of the "
            "objective"
        )


def check_unused(model: ModelConfig, source_of: Callable[[str], str | None], layers: Sequence[str]) -> None:
    """Reject a model key that has no effect, unless a later layer made it so.

    A later layer may choose ALiBi although a preset sets the rotary base, but setting both in one layer is an error.

    Args:
        model: final section.
        source_of: returns the layer that set a dotted key; None for a default.
        layers: layers in order of precedence, lowest first.

    Raises:
        ConfigError: a key has no effect.
    """
    age: dict[str | None, int] = {None: -1}
    age |= {layer: number for number, layer in enumerate(layers)}
    for key, decider, values in USED_WITH:
        value = getattr(model, decider)
        if value is not None and (not values or value in values):
            continue
        source, decided = source_of(f"model.{key}"), source_of(f"model.{decider}")
        is_default = getattr(model, key) == ModelConfig.model_fields[key].default
        if source is None or (source.startswith("recipe ") and is_default):  # a recipe undoes what others may have set
            continue
        if age[source] >= age[decided]:
            use = f"set model.{decider}={' or '.join(values)}" if values else f"set model.{decider}"
            raise ConfigError(
                f"model.{key}: has no effect with model.{decider}={'null' if value is None else value}; {use} or "
                f"remove it{set_in(source)}"
            )
