"""JSON Schemas of the YAML files, for editors. They describe one layer, so every key is optional."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from cram_composer.config.layers import BUDGET_SHORTHAND
from cram_composer.config.schema.data_build import DataBuildConfig
from cram_composer.config.schema.evaluation import PROTOCOLS
from cram_composer.config.schema.introspect import literals
from cram_composer.config.schema.recipe import Card
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.schema.scaleout import ScaleoutConfig
from cram_composer.config.schema.sweep import SweepConfig

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(kind: str) -> dict[str, Any]:
    """Return the JSON Schema of a kind of YAML file, one of KINDS."""
    schema = _as_layer(KINDS[kind]())
    return {"$schema": _DRAFT, "title": f"cram-composer: {kind} YAML", **schema}


def json_schema_text(kind: str) -> str:
    """Return the JSON Schema of a kind as the text of its file in `cram_composer/schemas/`."""
    return json.dumps(json_schema(kind), indent=1, ensure_ascii=False) + "\n"


def _run() -> dict[str, Any]:
    schema = RunConfig.model_json_schema()
    properties = schema["properties"]
    properties["budget"] = _or_short(properties["budget"], {"type": "string", "examples": BUDGET_SHORTHAND})
    strategies = literals(ScaleoutConfig.model_fields["strategy"].annotation)
    properties["scaleout"] = _or_short(properties["scaleout"], {"enum": strategies})
    properties["recipes"] = _or_short(properties["recipes"], {"type": ["string", "null"]})
    train = schema["$defs"]["TrainConfig"]["properties"]
    train["compile"] = _or_short(train["compile"], {"type": "boolean"})  # YAML reads `off` as false
    return schema


def _recipe() -> dict[str, Any]:
    schema, card = _run(), Card.model_json_schema()
    schema["properties"] = {"card": card, **schema["properties"]}
    schema["required"] = ["card"]
    return schema


def _evaluation() -> dict[str, Any]:
    protocols = {name: protocol.model_json_schema() for name, protocol in PROTOCOLS.items()}
    definitions: dict[str, Any] = {}
    for schema in protocols.values():
        definitions |= schema.pop("$defs", {})
    for name, schema in protocols.items():
        if name != "fine-tuning":  # the default kind
            schema["required"] = ["kind"]
    return {"anyOf": list(protocols.values()), "$defs": definitions}


def _sweep() -> dict[str, Any]:
    schema = SweepConfig.model_json_schema()
    budget = schema["properties"]["budget"]
    schema["properties"]["budget"] = _or_short(budget, {"type": "string", "examples": BUDGET_SHORTHAND})
    return schema


KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "run": _run,
    "recipe": _recipe,
    "data": DataBuildConfig.model_json_schema,
    "eval": _evaluation,
    "sweep": _sweep,
}


def _or_short(full: dict[str, Any], short: dict[str, Any]) -> dict[str, Any]:
    """Allow a short form as an alternative to the full one."""
    kept: dict[str, Any] = {key: full[key] for key in ("description", "default") if key in full}
    return {**kept, "anyOf": [short, {key: value for key, value in full.items() if key not in kept}]}


def _as_layer(schema: Any) -> Any:
    """Drop titles and turn exclusive unions into inclusive ones, because several optimizers match without a name."""
    if isinstance(schema, list):
        return [_as_layer(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    layer = {}
    for key, value in schema.items():
        if key == "discriminator" or (key == "title" and isinstance(value, str)):
            continue
        layer["anyOf" if key == "oneOf" else key] = _as_layer(value)
    return layer
