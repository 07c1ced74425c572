"""Conversion of a CramBERT to an equivalent class of transformers, so that its export needs no custom code."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import transformers  # classes are imported where they are used: ModernBERT takes two seconds
from transformers import PreTrainedModel

from cram_composer.errors import CramError
from cram_composer.models.crambert.configuration_crambert import CramBertConfig
from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM

State = dict[str, torch.Tensor]

# Values required by both classes.
_PLAIN: dict[str, Any] = {
    "shift": False,
    "stack": "plain",
    "ffn_every": 1,
    "qk_norm": False,
    "attention_gate": False,
    "value_embeddings": 0,
    "short_convolution": 0,
    "logit_softcap": None,
    "logit_scale": 1.0,
    "norm": "layernorm",
    "embedding_norm": True,
    "head_transform": True,
}
_BERT: dict[str, Any] = {
    "norm_position": "post",
    "norm_bias": True,
    "ffn": "gelu",
    "positions": "learned",
    "local_window": None,
    "attention_bias": True,
    "mlp_bias": True,
    "head_bias": True,
}
_MODERN_BERT: dict[str, Any] = {
    "norm_position": "pre",
    "first_norm": False,
    "final_norm": True,
    "ffn": "geglu",
    "positions": "rotary",
}


def to_native(model: CramBertForMaskedLM) -> PreTrainedModel | None:
    """Convert to an equivalent class of transformers, in fp32 on the CPU; return None if there is no such class."""
    config = model.config
    assert isinstance(config, CramBertConfig)
    for wanted, build, rename in ((_BERT, _bert, _to_bert), (_MODERN_BERT, _modern_bert, _to_modern_bert)):
        if all(getattr(config, key) == value for key, value in (_PLAIN | wanted).items()):
            state = {name: tensor.detach().float().cpu() for name, tensor in model.state_dict().items()}
            with torch.random.fork_rng():  # discards the initial values
                native = build(config)
            native.load_state_dict(rename(state, config))
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
        "intermediate_size": config.intermediate_size // 2,
        "norm_eps": config.norm_eps,
        "norm_bias": config.norm_bias,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "classifier_bias": config.mlp_bias,
        "decoder_bias": config.head_bias,
        "embedding_dropout": config.hidden_dropout_prob,
        "mlp_dropout": config.hidden_dropout_prob,
        "attention_dropout": config.attention_probs_dropout_prob,
        "local_attention": config.local_window if is_local else -1,
        "cls_token_id": config.bos_token_id,
        "sep_token_id": config.eos_token_id,
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


Rename = Callable[[State, CramBertConfig], State]


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
        theirs = f"model.layers.{layer}."
        found |= _renamed(state, f"encoder.layers.{layer}.", theirs, names)
        for kind in ("weight", "bias"):  # ModernBERT has the gate first
            if f"{theirs}mlp.Wi.{kind}" in found:
                value, gate = found[f"{theirs}mlp.Wi.{kind}"].chunk(2)
                found[f"{theirs}mlp.Wi.{kind}"] = torch.cat((gate, value))
    found |= _renamed(state, "head.transform.", "head.", {"dense": "dense", "norm": "norm"})
    return found | _renamed(state, "head.", "", {"decoder": "decoder"})


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
    forms = {"bert": (_BERT, _to_bert), "modernbert": (_MODERN_BERT, _to_modern_bert)}
    if native.config.model_type not in forms:
        raise CramError(
            f"{where}: CramBERT has no form equivalent to '{native.config.model_type}'; set model.architecture=hf and "
            f"model.hf_name={native.config.model_type}"
        )
    wanted, rename = forms[native.config.model_type]
    changes = [f"model.{k}={json.dumps(v)}" for k, v in (_PLAIN | wanted).items() if getattr(config, k) != v]
    if changes:
        raise CramError(f"{where}: is a {type(native).__name__}, which CramBERT equals with {' '.join(changes)}")
    # Number every weight, see where `rename` puts the numbers, and fetch the native weights from there.
    numbers, count = {}, 1  # 0 stands for weights that CramBERT lacks
    for name, tensor in model.state_dict().items():
        numbers[name] = torch.arange(count, count + tensor.numel()).view(tensor.shape)
        count += tensor.numel()
    values = torch.zeros(count)
    theirs, places = native.state_dict(), rename(numbers, config)
    for name in places | theirs:
        if name not in places or name not in theirs or places[name].shape != theirs[name].shape:
            raise CramError(f"{where}: {name} does not fit the run's model; set the sizes of `model` to those of it")
        values[places[name].long().flatten()] = theirs[name].float().flatten()
    state = {name: values[number] for name, number in numbers.items()}
    if native.config.model_type == "bert":
        types = theirs["bert.embeddings.token_type_embeddings.weight"]
        state["encoder.embeddings.positions.embedding.weight"] += types[0].float()
    return state
