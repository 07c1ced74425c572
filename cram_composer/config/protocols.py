"""Evaluation protocols: the `kind` in the YAML says which schema it is read by."""

from __future__ import annotations

import difflib

from cram_composer.config.compose import Composed, compose, read_yaml
from cram_composer.config.paths import protocol_file
from cram_composer.config.schema.evaluation import PROTOCOLS, ProtocolConfig
from cram_composer.errors import ConfigError


def protocol_kind(suite: str) -> str:
    """The kind of a protocol of `yamls/eval`, by its name, or of a YAML file. Raises ConfigError."""
    file = protocol_file(suite)
    kind = str(read_yaml(file).get("kind", ProtocolConfig.kind))
    if kind not in PROTOCOLS:
        nearest = difflib.get_close_matches(kind, PROTOCOLS, n=1, cutoff=0.0)[0]
        raise ConfigError(f"{file}: kind: '{kind}' is not one of {', '.join(PROTOCOLS)}; did you mean '{nearest}'?")
    return kind


def compose_protocol(suite: str, overrides: list[str]) -> Composed:
    """The protocol under the schema of its kind, with the dotlist `overrides`. Raises ConfigError."""
    return compose(PROTOCOLS[protocol_kind(suite)], protocol_file(suite), overrides)
