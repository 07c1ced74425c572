"""Conversion of a CramBERT to an equivalent class of transformers, so that its export needs no custom code."""

from __future__ import annotations

import json
from typing import Any

import torch
import transformers  # classes are imported where they are used: ModernBERT takes two seconds
from transformers import PreTrainedModel

from cram_composer.config.native_forms import required_changes
from cram_composer.errors import CramError
from cram_composer.models.crambert.configuration_crambert import CramBertConfig
from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM

State = dict[str, torch.Tensor]

# A norm's weight this much smaller than its largest cannot be divided by.
_LEAST_SHARE = 1e-3


def to_native(model: CramBertForMaskedLM) -> PreTrainedModel | None:
    """Convert to an equivalent class of transformers, in fp32 on the CPU; return None if there is no such class.

    ModernBERT has no norm before the attention of its first layer, and always a transform before its decoder. A
    CramBERT with that norm gets a layer in front that changes nothing. One without the transform gets a linear one that
    undoes the weights of the final norm, and a norm that applies them again.
    """
    config = model.config
    assert isinstance(config, CramBertConfig)
    if config.shift or config.logit_scale != 1.0:
        return None
    builders = {"BertForMaskedLM": (_bert, _to_bert), "ModernBertForMaskedLM": (_modern_bert, _to_modern_bert)}
    for form, (build, rename) in builders.items():
        if not required_changes(form, config):
            state = {name: tensor.detach().float().cpu() for name, tensor in model.state_dict().items()}
            with torch.random.fork_rng():  # discards the initial values
                native = build(config)
            found = rename(state, config)
            if form == "ModernBertForMaskedLM":
                found |= _constants(native.state_dict(), found, config)
            native.load_state_dict(found)
            return native.eval()
    return None


def _shared(config: CramBertConfig) -> dict[str, Any]:
    ids = {key: getattr(config, key) for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "initializer_range")
    return {
        **ids,
        **{key: getattr(config, key) for key in sizes},
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


def _bert(config: CramBertConfig) -> PreTrainedModel:
    return transformers.BertForMaskedLM(
        transformers.BertConfig(
            **_shared(config),
            intermediate_size=config.intermediate_size,
            hidden_act="gelu",
            hidden_dropout_prob=config.hidden_dropout_prob,
            attention_probs_dropout_prob=config.attention_probs_dropout_prob,
            layer_norm_eps=config.norm_eps,
        )
    )


def _modern_bert(config: CramBertConfig) -> PreTrainedModel:
    is_local = config.local_window is not None
    settings: dict[str, Any] = {
        **_shared(config),
        "num_hidden_layers": config.num_hidden_layers + _layers_in_front(config),
        "intermediate_size": config.intermediate_size // 2,
        "norm_eps": config.norm_eps,
        "norm_bias": config.norm_bias,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "classifier_bias": config.mlp_bias if config.head_transform else config.norm_bias,
        **({} if config.head_transform else {"classifier_activation": "linear"}),
        "decoder_bias": config.head_bias,
        "embedding_dropout": config.hidden_dropout_prob,
        "mlp_dropout": config.hidden_dropout_prob,
        "attention_dropout": config.attention_probs_dropout_prob,
        "local_attention": config.local_window if is_local else -1,
        "cls_token_id": config.bos_token_id,
        "sep_token_id": config.eos_token_id,
        "classifier_pooling": "mean",  # like CramBERT; rows of pretraining need not begin with [CLS]
    }
    # transformers 5 turns these into rope_parameters and layer_types, and drops them; 4 reads no other names.
    only_4: dict[str, Any] = {
        "global_rope_theta": config.rope_theta,
        "local_rope_theta": config.local_rope_theta or config.rope_theta,
        "global_attn_every_n_layers": config.global_every if is_local else 1,
        "reference_compile": False,
    }
    native = transformers.ModernBertForMaskedLM(transformers.ModernBertConfig(**settings, **only_4))
    for name, value in only_4.items():
        setattr(native.config, name, value)
    return native


def _renamed(state: State, prefix: str, target: str, names: dict[str, str]) -> State:
    """Return the weights and biases found under `prefix`, under their names in `target`."""
    return {
        f"{target}{theirs}.{kind}": state[f"{prefix}{ours}.{kind}"]
        for ours, theirs in names.items()
        for kind in ("weight", "bias")
        if f"{prefix}{ours}.{kind}" in state
    }


def _to_bert(state: State, config: CramBertConfig) -> State:
    embeddings = "bert.embeddings."
    found = _renamed(
        state,
        "encoder.embeddings.",
        embeddings,
        {"word_embeddings": "word_embeddings", "positions.embedding": "position_embeddings", "norm": "LayerNorm"},
    )
    found[f"{embeddings}token_type_embeddings.weight"] = torch.zeros(2, config.hidden_size)  # CramBERT has none
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"encoder.layers.{layer}.", f"bert.encoder.layer.{layer}."
        for kind in ("weight", "bias"):
            projections = state[f"{ours}attention.qkv.{kind}"].chunk(3)
            for name, part in zip(("query", "key", "value"), projections, strict=True):
                found[f"{theirs}attention.self.{name}.{kind}"] = part.clone()
        names = {
            "attention.out": "attention.output.dense",
            "attention_norm": "attention.output.LayerNorm",
            "feedforward.w_in": "intermediate.dense",
            "feedforward.w_out": "output.dense",
            "feedforward_norm": "output.LayerNorm",
        }
        found |= _renamed(state, ours, theirs, names)
    head = {"transform.dense": "transform.dense", "transform.norm": "transform.LayerNorm", "decoder": "decoder"}
    found |= _renamed(state, "head.", "cls.predictions.", head)
    found["cls.predictions.bias"] = state["head.decoder.bias"]
    return found


def _layers_in_front(config: CramBertConfig) -> int:
    """Return the number of layers of ModernBERT before the first one of CramBERT, which change nothing."""
    return int(config.first_norm)


def _to_modern_bert(state: State, config: CramBertConfig) -> State:
    found = _renamed(
        state, "encoder.embeddings.", "model.embeddings.", {"word_embeddings": "tok_embeddings", "norm": "norm"}
    )
    found |= _renamed(state, "encoder.", "model.", {"final_norm": "final_norm"})
    for layer in range(config.num_hidden_layers):
        names = {
            "attention.qkv": "attn.Wqkv",
            "attention.out": "attn.Wo",
            "attention_norm": "attn_norm",
            "feedforward_norm": "mlp_norm",
            "feedforward.w_in": "mlp.Wi",
            "feedforward.w_out": "mlp.Wo",
        }
        theirs = f"model.layers.{layer + _layers_in_front(config)}."
        found |= _renamed(state, f"encoder.layers.{layer}.", theirs, names)
        for kind in ("weight", "bias"):  # ModernBERT has the gate first
            if f"{theirs}mlp.Wi.{kind}" in found:
                value, gate = found[f"{theirs}mlp.Wi.{kind}"].chunk(2)
                found[f"{theirs}mlp.Wi.{kind}"] = torch.cat((gate, value))
    found |= _renamed(state, "head.transform.", "head.", {"dense": "dense", "norm": "norm"})
    return found | _renamed(state, "head.", "", {"decoder": "decoder"})


def _constants(native: State, found: State, config: CramBertConfig) -> State:
    """Return the weights of ModernBERT that CramBERT lacks: of the layer in front and of the head.

    Without a transform, the decoder reads g n + b, where n is the final norm before its weights g and b. The head's
    linear layer recovers n, and its norm, which changes nothing else of n, applies g and b. If g is nearly zero
    somewhere, the final norm returns n itself: the logits are the same, the encoder's output is not scaled.
    """
    made = {
        name: torch.ones_like(tensor) if name.endswith("mlp_norm.weight") else torch.zeros_like(tensor)
        for name, tensor in native.items()
        if _layers_in_front(config) and name.startswith("model.layers.0.")
    }
    if config.head_transform:
        return made
    final = {name: found[name] for name in ("model.final_norm.weight", "model.final_norm.bias") if name in found}
    made |= {name.replace("model.final_norm", "head.norm"): tensor.clone() for name, tensor in final.items()}
    weight, bias = final["model.final_norm.weight"], final.get("model.final_norm.bias")
    if float(weight.abs().min()) < _LEAST_SHARE * float(weight.abs().max()):
        made["model.final_norm.weight"], weight = torch.ones_like(weight), torch.ones_like(weight)
        if bias is not None:
            made["model.final_norm.bias"], bias = torch.zeros_like(bias), torch.zeros_like(bias)
    made["head.dense.weight"] = torch.diag(1.0 / weight)
    if bias is not None:
        made["head.dense.bias"] = -bias / weight
    return made


def _without_constants(native: State, config: CramBertConfig, where: str) -> State:
    """Remove from ModernBERT's weights what `_constants` adds. Raises CramError if they differ from it."""
    kept = dict(native)
    if _layers_in_front(config):
        for name in [name for name in kept if name.startswith("model.layers.0.")]:
            expected = 1.0 if name.endswith("mlp_norm.weight") else 0.0
            if not bool((kept.pop(name) == expected).all()):
                raise CramError(f"{where}: its first layer has no norm before attention; set model.first_norm=false")
    if config.head_transform:
        return kept
    head = {name: kept.pop(name) for name in list(kept) if name.startswith("head.")}
    width = config.hidden_size
    read = torch.stack((torch.zeros(width), torch.ones(width)))  # n = 0 and 1 tell an affine function of each element
    for prefix in ("model.final_norm", "head.dense"):
        weight = (kept | head)[f"{prefix}.weight"].float()
        scale = weight if weight.ndim == 1 else weight.diagonal()
        diagonal = weight.ndim == 1 or bool((weight == torch.diag(scale)).all())
        bias = (kept | head).get(f"{prefix}.bias", torch.zeros(width)).float()
        read = read * scale + bias if diagonal else torch.full_like(read, torch.nan)
    if not torch.allclose(read, torch.tensor([[0.0], [1.0]]).expand_as(read), atol=1e-4):
        raise CramError(f"{where}: has a transform before its decoder; set model.head_transform=true")
    return kept | {name.replace("head.norm", "model.final_norm"): head[name] for name in head if "norm" in name}


def from_native(native: PreTrainedModel, model: CramBertForMaskedLM, where: str) -> State:
    """Convert the weights of a BERT or ModernBERT to those of `model`, the inverse of `to_native`.

    BERT's embedding of the first token type, which CramBERT lacks, is added to the positions.

    Args:
        native: a model of transformers.
        model: the model to convert to; its weights are not used.
        where: names the native model in errors.

    Raises:
        CramError: a class or configuration without an equivalent CramBERT.
    """
    config = model.config
    assert isinstance(config, CramBertConfig)
    forms = {"bert": ("BertForMaskedLM", _to_bert), "modernbert": ("ModernBertForMaskedLM", _to_modern_bert)}
    if native.config.model_type not in forms:
        raise CramError(
            f"{where}: CramBERT has no form equivalent to '{native.config.model_type}'; set model.architecture=hf and "
            f"model.hf_name={native.config.model_type}"
        )
    form, rename = forms[native.config.model_type]
    linear = getattr(native.config, "classifier_activation", None) == "linear"
    wanted = required_changes(form, config)
    if form == "ModernBertForMaskedLM" and config.head_transform == linear:
        wanted["head_transform"] = not linear
    changes = [f"model.{key}={json.dumps(value)}" for key, value in wanted.items()]
    if changes:
        raise CramError(f"{where}: is a {type(native).__name__}, which CramBERT equals with {' '.join(changes)}")
    # Number every weight, see where `rename` puts the numbers, and fetch the native weights from there.
    numbers, count = {}, 1  # 0 stands for weights that CramBERT lacks
    for name, tensor in model.state_dict().items():
        numbers[name] = torch.arange(count, count + tensor.numel()).view(tensor.shape)
        count += tensor.numel()
    values = torch.zeros(count)
    theirs, places = native.state_dict(), rename(numbers, config)
    if form == "ModernBertForMaskedLM":
        theirs = _without_constants(theirs, config, where)
    for name in places | theirs:
        if name not in places or name not in theirs or places[name].shape != theirs[name].shape:
            raise CramError(f"{where}: {name} does not fit the run's model; set the sizes of `model` to those of it")
        values[places[name].long().flatten()] = theirs[name].float().flatten()
    state = {name: values[number] for name, number in numbers.items()}
    if native.config.model_type == "bert":
        types = theirs["bert.embeddings.token_type_embeddings.weight"]
        state["encoder.embeddings.positions.embedding.weight"] += types[0].float()
    return state
