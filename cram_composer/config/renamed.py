"""Configuration keys of earlier versions: their current names or replacements."""

from __future__ import annotations

import copy
from typing import Any

RENAMED_KEYS = {
    "model.norm_place": "model.norm_position",
    "train.nonfinite": "train.on_nonfinite",
    "train.kill": "train.early_stop",
    "optimizer.mup_base_width": "model.mup_base_width",
}
REMOVED_KEYS = {
    "optimizer.matrix_lr": "matrices and other weights share one rate; set optimizer.lr",
    "algorithms.seq_length_warmup.max_seq_length": "the warmup ends at the row length of the data set; remove it",
}
RENAMED_VALUES = {("model.ffn", "gelu_glu"): "geglu"}


def rename_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a recorded configuration (nested dicts) with the current names of its keys and values."""
    renamed = copy.deepcopy(config)
    for section in ("optimizer", "schedule"):  # once held the keys of all choices, null if unused
        if isinstance(values := renamed.get(section), dict):
            renamed[section] = {key: value for key, value in values.items() if value is not None}
    for old, new in RENAMED_KEYS.items():
        section, old_name = old.split(".")
        if isinstance(values := renamed.get(section), dict) and old_name in values:
            value = values.pop(old_name)
            renamed[new.split(".")[0]][new.split(".")[1]] = value
    for (key, old_value), new_value in RENAMED_VALUES.items():
        section, name = key.split(".")
        if isinstance(values := renamed.get(section), dict) and values.get(name) == old_value:
            values[name] = new_value
    return renamed
