"""Which models are equal to a class of transformers, so that their export needs no code of this project.

The keys are those of `model` in a run, which CramBERT's own configuration shares.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_QUOTE = '"'
_HEAD = "ForMaskedLM"

# Values that every class requires.
PLAIN: dict[str, Any] = {
    "embedding_size": None,
    "stack": "plain",
    "ffn_every": 1,
    "qk_norm": False,
    "attention_gate": False,
    "value_embeddings": 0,
    "short_convolution": 0,
    "logit_softcap": None,
    "norm": "layernorm",
    "embedding_norm": True,
}
BERT: dict[str, Any] = PLAIN | {
    "norm_position": "post",
    "norm_bias": True,
    "ffn": "gelu",
    "positions": "learned",
    "local_window": None,
    "attention_bias": True,
    "mlp_bias": True,
    "head_bias": True,
    "head_transform": True,
}
MODERN_BERT: dict[str, Any] = PLAIN | {
    "norm_position": "pre",
    "final_norm": True,
    "ffn": "geglu",
    "positions": "rotary",
}
FORMS = {"BertForMaskedLM": BERT, "ModernBertForMaskedLM": MODERN_BERT}


def required_changes(form: str, model: Any) -> dict[str, Any]:
    """Return the values of a model's configuration that must change for the class `form`; empty if it is one."""
    changes = {key: value for key, value in FORMS[form].items() if getattr(model, key, value) != value}
    if form == "ModernBertForMaskedLM" and getattr(model, "local_window", None) is not None and model.first_norm:
        changes["first_norm"] = False  # otherwise a layer in front would shift which layers are local
    return changes


def fills_masks(objective: Mapping[str, Any]) -> bool:
    """Return True if the exported model of an objective has a masked-LM head; without one, its generator has."""
    return objective.get("name", "mlm") == "mlm" or objective.get("corrective_masks") is not None


def native_form(model: Any, objective: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the class of transformers that is closest to a run's model, and the settings in the way.

    Args:
        model: the `model` section of a run.
        objective: its `objective` section.

    Returns:
        The class, for `architecture: hf` the model type, and the values by dotted key that would make the model equal
        to it; none if it is.
    """
    if getattr(model, "architecture", "crambert") == "hf":
        return str(model.hf_name), {}
    form = min(FORMS, key=lambda name: len(required_changes(name, model)))
    changes = {f"model.{key}": value for key, value in required_changes(form, model).items()}
    if getattr(model, "mup_base_width", None) not in (None, model.hidden_size):
        changes["model.mup_base_width"] = None
    if objective.get("shift"):
        changes["objective.shift"] = False
    return (form if fills_masks(objective) else form.replace(_HEAD, "Model")), changes


def export_class(model: Any, objective: Mapping[str, Any]) -> str:
    """Say in words as what class a run's model is exported, and what is in the way of a class of transformers."""
    form, changes = native_form(model, objective)
    if not changes:
        return f"{form}, without code"
    settings = " ".join(f"{key}={json.dumps(value).strip(_QUOTE)}" for key, value in changes.items())
    ours = f"CramBert{_HEAD if fills_masks(objective) else 'Model'}"
    return f"{ours}, with its code; {form} with {settings}"
