"""Evaluation protocols: the `kind` in the YAML chooses the schema."""

from __future__ import annotations

from typing import Any

from cram_composer.config.compose import Composed, compose
from cram_composer.config.layers import read_yaml
from cram_composer.config.messages import did_you_mean
from cram_composer.config.paths import protocol_file
from cram_composer.config.schema.evaluation import PROTOCOLS
from cram_composer.errors import ConfigError


def protocol_kind(suite: str) -> str:
    """Return the kind of a protocol: a name in `yamls/eval` or a YAML file. Raises ConfigError."""
    file = protocol_file(suite)
    kind = str(read_yaml(file).get("kind", "fine-tuning"))
    if kind not in PROTOCOLS:
        raise ConfigError(
            f"kind: must be one of {', '.join(PROTOCOLS)}, got '{kind}'{did_you_mean(kind, PROTOCOLS)} (set in {file})"
        )
    return kind


def compose_protocol(suite: str, overrides: list[str]) -> Composed[Any]:
    """Compose a protocol with the schema of its kind and the dotlist `overrides`. Raises ConfigError."""
    return compose(PROTOCOLS[protocol_kind(suite)], protocol_file(suite), overrides)
