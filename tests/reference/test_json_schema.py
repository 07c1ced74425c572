"""JSON Schemas accept every shipped YAML and reject what the schema rejects."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema
import pydantic
import pytest

from cram_composer.config.layers import read_yaml
from cram_composer.reference.json_schema import KINDS, json_schema, json_schema_text
from tests.conftest import REPOSITORY

SCHEMAS = REPOSITORY / "cram_composer" / "schemas"
YAMLS = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for pattern in ("recipes/*.yaml", "yamls/*.yaml", "yamls/*/*.yaml", "benchmarks/*.yaml", "examples/*/*.yaml")
    for path in REPOSITORY.glob(pattern)
    if path.parent.name != "skypilot"  # a file of SkyPilot's
)


@functools.cache
def validator_of(kind: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json_schema(kind))


@functools.cache
def shipped(schema: Path) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(schema.read_text(encoding="utf-8")))


def accepts(kind: str, value: Any) -> bool:
    return validator_of(kind).is_valid(value)


@pytest.mark.skipif(
    pydantic.VERSION.startswith(("2.10", "2.11")), reason="the shipped schema is in the form of the locked pydantic"
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_shipped_schema_is_current(kind: str):
    text = (SCHEMAS / f"{kind}.json").read_text(encoding="utf-8")
    assert text == json_schema_text(kind), f"run: cram schema {kind} > cram_composer/schemas/{kind}.json"
    jsonschema.Draft202012Validator.check_schema(json.loads(text))


@pytest.mark.parametrize("name", YAMLS)
def test_every_yaml_names_its_schema_and_follows_it(name: str):
    path = REPOSITORY / name
    first = path.read_text(encoding="utf-8").splitlines()[0]
    prefix = "# yaml-language-server: $schema="
    assert first.startswith(prefix)
    schema = (path.parent / first.removeprefix(prefix)).resolve()
    assert schema.parent == SCHEMAS
    shipped(schema).validate(read_yaml(path))


@pytest.mark.parametrize(
    "value",
    [
        {"budget": "24h"},
        {"budget": {"device_hours": 24}},
        {"scaleout": "fsdp2"},
        {"recipes": "crammed-bert", "train": {"compile": False}},
        {"optimizer": {"lr": 1e-3}},
        {"optimizer": {"name": "muon", "momentum": 0.9}},
        {"algorithms": {"ema": {}, "swa": None}},
    ],
)
def test_layers_are_accepted(value: dict[str, Any]):
    assert accepts("run", value)


@pytest.mark.parametrize(
    "value",
    [
        {"budgt": "24h"},
        {"scaleout": "fsdp"},
        {"optimizer": {"name": "adamw", "momentum": 0.9}},
        {"optimizer": {"name": "adam"}},
        {"optimizer": {"lr": -1}},
        {"schedule": {"name": "cosine", "peak_at": 0.5}},
        {"model": {"ffn": "gelu_glu"}},
        {"algorithms": {"ema": {"half_life": 2.0}}},
    ],
)
def test_mistakes_are_rejected(value: dict[str, Any]):
    assert not accepts("run", value)


def test_a_recipe_needs_its_card():
    assert not accepts("recipe", {"seed": 1})
    recipe = read_yaml(Path(REPOSITORY / "recipes" / "muon.yaml"))
    assert accepts("recipe", recipe)
    del recipe["card"]["source"]
    assert not accepts("recipe", recipe)
