"""Composition: schema defaults, then recipes in order, then the YAML, then the command line; later wins.

Ingredients that only the command line names come after the YAML: they are what its user wants changed.

Every layer is checked against the schema on its own, so that an error can name the file it is in.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from cram_composer.config.paths import find_shared
from cram_composer.config.recipes import Recipe, check_compatible, check_used, leaves, load_recipe
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.shorthand import expand
from cram_composer.config.validation.combinations import check_read
from cram_composer.config.validation.run import check_values
from cram_composer.errors import ConfigError

DEFAULT = "default"
COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Composed:
    """A final configuration and its history.

    `config` is an instance of the schema, `plain` the same as nested dicts, `provenance` maps a dotted key to the layer
    its value is from, `overridden` to the (layer, value) pairs that lost, oldest first; `hash` identifies the values.
    """

    config: Any
    plain: dict[str, Any]
    provenance: dict[str, str]
    overridden: dict[str, list[tuple[str, Any]]]
    hash: str
    path: str


def compose(schema: type, path: Path | str, overrides: list[str]) -> Composed:
    """Compose the YAML at `path` with the dotlist `overrides` under the dataclass `schema`.

    A schema with a `recipes` field gets the named recipes merged first. Raises ConfigError, one line.
    """
    file = find_shared(Path(path))
    in_file = read_yaml(file)
    on_command_line = [parse_override(item) for item in overrides]
    recipes: list[Recipe] = []
    if "recipes" in {f.name for f in dataclasses.fields(schema)}:
        recipes = _named_recipes(in_file, on_command_line, str(path))
    # What a file names it may adjust; an ingredient that the command line adds changes the file.
    in_file_named = as_list(in_file.get("recipes"))
    added = [r for r in recipes if r.card.kind == "ingredient" and r.name not in in_file_named]
    layers = [(f"recipe {recipe.name}", recipe.values) for recipe in recipes if recipe not in added]
    layers.append((str(path), in_file))
    layers += [(f"recipe {recipe.name}", recipe.values) for recipe in added]

    merged: DictConfig = OmegaConf.structured(schema)
    provenance = dict.fromkeys(leaves(_plain(merged)), DEFAULT)
    overridden: dict[str, list[tuple[str, Any]]] = {}
    for source, values in layers:
        merged = _apply(merged, source, values, provenance, overridden)
    for key, value in on_command_line:
        merged = _apply(merged, COMMAND_LINE, {key: value}, provenance, overridden)
    plain = _plain(merged)
    check_values(schema, plain, provenance)
    if recipes:
        check_used(recipes, plain, provenance["recipes"])
    if schema is RunConfig:
        check_read(plain, provenance, [DEFAULT, *(source for source, _ in layers), COMMAND_LINE])
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return Composed(OmegaConf.to_object(merged), plain, provenance, overridden, digest, str(path))


def _named_recipes(in_file: dict[str, Any], on_command_line: list[tuple[str, Any]], path: str) -> list[Recipe]:
    source, named = path, in_file.get("recipes")
    for key, value in on_command_line:
        if key == "recipes":
            source, named = COMMAND_LINE, value
    names = as_list(named)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{source}: 'recipes' must be a list of recipe names, such as recipes=[crammed-bert,ema]")
    recipes = [load_recipe(name, source) for name in names]
    check_compatible(recipes, source)
    return recipes


def as_list(named: Any) -> Any:
    """The value of `recipes`: a name stands for a list of one, nothing for an empty list."""
    return [] if named is None else [named] if isinstance(named, str) else named


def read_yaml(file: Path) -> dict[str, Any]:
    """What is in a YAML file, unchecked. Raises ConfigError where that is no mapping."""
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(file))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{file}: the top level must be a mapping of keys to values")
    return {str(key): value for key, value in loaded.items()}


def parse_override(item: str) -> tuple[str, Any]:
    """The key and the value of `key=value`, as OmegaConf reads YAML. Raises ConfigError, one line."""
    key, equals, value = item.partition("=")
    if not equals or not key:
        raise ConfigError(f"command line: '{item}' is not an override: write key=value, such as budget=6h")
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))
    except (YAMLError, OmegaConfBaseException):
        raise ConfigError(f"command line: the value of '{item}' is not valid YAML") from None
    assert isinstance(parsed, dict)
    return key, parsed["value"]


def _apply(
    config: DictConfig,
    source: str,
    values: dict[str, Any],
    provenance: dict[str, str],
    overridden: dict[str, list[tuple[str, Any]]],
) -> DictConfig:
    """Apply one layer, record what it set, and turn OmegaConf's errors into one line that names the layer."""
    before = leaves(_plain(config))
    try:
        after_config, named = _merge(config, values)
        after = leaves(_plain(after_config))
    except ConfigKeyError as error:
        raise ConfigError(f"{source}: unknown key '{error.full_key}'{_nearest(error)}") from None
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        key = getattr(error, "full_key", None)
        detail = str(error).splitlines()[0]
        raise ConfigError(f"{source}: {f'{key}: ' if key else ''}{detail}") from None
    for key, value in after.items():
        # A layer that names a value owns it, also when the value was the same before.
        if key in named or key not in before or before[key] != value:
            earlier = provenance.get(key, DEFAULT)
            if earlier not in (DEFAULT, source):
                overridden.setdefault(key, []).append((earlier, before.get(key)))
            provenance[key] = source
    for key in before.keys() - after.keys():
        provenance.pop(key, None)
    return after_config


def _merge(config: DictConfig, values: dict[str, Any]) -> tuple[DictConfig, set[str]]:
    """Merge nested or dotted values; returns the result and the dotted keys that they name.

    A number in a dotted key is a place in a list, such as sources.0.path.
    """
    nested: dict[str, Any] = {}
    named: set[str] = set()
    for key, value in values.items():
        names = key.split(".")
        if any(name.isdigit() for name in names):
            OmegaConf.update(config, key, value)
            named.add(key[: key.index(next(f".{name}" for name in names if name.isdigit()))])
            continue
        for name in reversed(names[1:]):
            value = {name: value}
        nested[names[0]] = value
    nested = expand(nested)
    named |= leaves(nested).keys()
    merged = OmegaConf.merge(config, nested)
    assert isinstance(merged, DictConfig)
    return merged, named


def _nearest(error: ConfigKeyError) -> str:
    unknown = str(error.full_key).rsplit(".", 1)[-1]
    owner = error.object_type
    if not (isinstance(owner, type) and dataclasses.is_dataclass(owner)):
        return ""
    names = [f.name for f in dataclasses.fields(owner)]
    return f"; did you mean '{difflib.get_close_matches(unknown, names, n=1, cutoff=0.0)[0]}'?" if names else ""


def _plain(config: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
