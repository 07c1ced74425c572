"""Composition of a configuration from layers, with the layer that set each value.

Precedence, lowest first: defaults of the schema, recipes named in the YAML (and any preset), values in the YAML,
ingredients named only on the command line, values on the command line.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from cram_composer.config.identity import learnt_values
from cram_composer.config.layers import COMMAND_LINE, flatten, parse_override, read_yaml, spell_out
from cram_composer.config.messages import config_error, set_in
from cram_composer.config.paths import find_shared
from cram_composer.config.recipes import Recipe, check_architecture, check_compatible, load_recipe
from cram_composer.config.redaction import redact
from cram_composer.config.schema.base import Settings
from cram_composer.config.schema.introspect import allows_none, annotations_at
from cram_composer.config.schema.objective import MaskedLMConfig, Objective
from cram_composer.config.schema.optimizer import AdamWConfig, Optimizer
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.schema.schedule import Schedule, TriangleConfig
from cram_composer.config.validation.combinations import check_unused
from cram_composer.config.validation.run import check_run
from cram_composer.errors import ConfigError

DEFAULT = "default"
_S = TypeVar("_S", bound=Settings)
_UNSET_VARIABLE = re.compile("Environment variable '(.+)' not found")
# Sections whose `name` chooses a class: the keys kept when another class is chosen, and the default name.
_CHOSEN_BY_NAME: dict[str, tuple[tuple[str, ...], str]] = {
    "objective": (Objective.KEPT, MaskedLMConfig().name),
    "optimizer": (Optimizer.KEPT, AdamWConfig().name),
    "schedule": (Schedule.KEPT, TriangleConfig().name),
}


@dataclass(frozen=True)
class Composed(Generic[_S]):
    """A final configuration with the origin of its values.

    Attributes:
        config: instance of the schema.
        plain: the configuration as nested dicts, without credentials.
        provenance: dotted key -> layer that set its value, or "default".
        overridden: dotted key -> (layer, value) pairs that later layers replaced, oldest first.
        hash: hash of the values; for a run, of those that are fixed when it resumes.
        path: path of the YAML.
    """

    config: _S
    plain: dict[str, Any]
    provenance: dict[str, str]
    overridden: dict[str, list[tuple[str, Any]]]
    hash: str
    path: str


def compose_run(path: Path | str, overrides: list[str], world_size: int = 1) -> Composed[RunConfig]:
    """Compose a run and check it for `world_size` devices, without looking at data or hardware.

    Raises:
        ConfigError: an invalid configuration.
    """
    composed = compose(RunConfig, path, overrides)
    try:
        check_run(composed.config, world_size)
    except ConfigError as error:
        source = composed.provenance.get(str(error).partition(":")[0], DEFAULT)
        raise ConfigError(f"{error}{set_in(None if source == DEFAULT else source)}") from None
    return composed


def compose(schema: type[_S], path: Path | str, overrides: list[str]) -> Composed[_S]:
    """Compose the YAML at `path` with the dotlist `overrides` and validate the result against `schema`.

    If the schema has a `recipes` field, the named recipes are merged first. Raises ConfigError.
    """
    in_file = read_yaml(find_shared(Path(path)))
    on_command_line = [parse_override(item) for item in overrides]
    recipes: list[Recipe] = []
    if "recipes" in schema.model_fields:
        on_command_line = [
            (key, changed_recipes(value, in_file.get("recipes"), str(path)) if key == "recipes" else value)
            for key, value in on_command_line
        ]
        recipes = _named_recipes(in_file, on_command_line, str(path))
    # A file adjusts the recipes that it names, but an ingredient added on the command line overrides the file.
    in_file_named = as_list(in_file.get("recipes"))
    added = [r for r in recipes if r.card.kind == "ingredient" and r.name not in in_file_named]
    layers = [(f"recipe {recipe.name}", recipe.values) for recipe in recipes if recipe not in added]
    layers.append((str(path), in_file))
    layers += [(f"recipe {recipe.name}", recipe.values) for recipe in added]
    layers += [(COMMAND_LINE, {key: value}) for key, value in on_command_line]

    merged = _Merged()
    for source, values in layers:
        merged.add(source, values)
    raw = merged.resolve()
    _unset_nulls(schema, raw)
    try:
        config = schema.model_validate(raw)
    except ValidationError as error:
        raise config_error(error, schema, merged.last_set) from None
    plain = redact(config.model_dump(mode="json"))
    provenance = {key: merged.sources.get(key, DEFAULT) for key in flatten(plain)}
    if isinstance(config, RunConfig):
        check_architecture(recipes, config.model)
        check_unused(config.model, merged.source_of, list(dict.fromkeys(source for source, _ in layers)))
    identity = learnt_values(plain) if isinstance(config, RunConfig) else plain
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]
    overridden = {
        key: [(source, redact(value, key)) for source, value in replaced] for key, replaced in merged.overridden.items()
    }
    return Composed(config, plain, provenance, overridden, digest, str(path))


@dataclass
class _Merged:
    """Layers merged so far, with the layer that set each dotted key."""

    values: DictConfig = field(default_factory=lambda: OmegaConf.create({}))
    sources: dict[str, str] = field(default_factory=dict)
    overridden: dict[str, list[tuple[str, Any]]] = field(default_factory=dict)

    def add(self, source: str, values: dict[str, Any]) -> None:
        """Merge one layer."""
        indexed = {key: value for key, value in values.items() if self._names_item(key)}
        nested = spell_out({key: value for key, value in values.items() if key not in indexed})
        self._reset_other_choices(source, nested)
        before = flatten(OmegaConf.to_container(self.values))
        try:
            self.values = OmegaConf.merge(self.values, nested)  # type: ignore[assignment]
            for key, value in indexed.items():
                OmegaConf.update(self.values, key, value)
        except (OmegaConfBaseException, ValueError, TypeError, IndexError) as error:
            key = getattr(error, "full_key", None) or next(iter(values))
            raise ConfigError(f"{key}: {str(error).splitlines()[0]}{set_in(source)}") from None
        lists = [key[: key.index(next(f".{part}" for part in key.split(".") if part.isdigit()))] for key in indexed]
        after = flatten(OmegaConf.to_container(self.values))
        given = flatten(values)
        for key in (*(key for key in flatten(nested) if key in after), *lists):
            if after[key] is None and key not in before and key not in given:
                continue  # a null from expanding a short form, not set by the layer
            self._replace(key, source, before)
        for key, value in before.items():
            if key not in after:
                self._forget(key, value)

    def _names_item(self, key: str) -> bool:
        """Return True if a dotted key names an item of a list of the layers so far, such as `optimizer.betas.0`."""
        parts = key.split(".")
        index = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
        return index > 0 and isinstance(OmegaConf.select(self.values, ".".join(parts[:index])), ListConfig)

    def resolve(self) -> dict[str, Any]:
        """Return the merged values as nested dicts, interpolations replaced."""
        try:
            resolved = OmegaConf.to_container(self.values, resolve=True)
        except OmegaConfBaseException as error:
            key, problem = str(error.full_key), str(error).splitlines()[0]
            if variable := _UNSET_VARIABLE.search(problem):
                problem = f"the environment variable {variable[1]} is not set; set it, or write a value in its place"
            raise ConfigError(f"{key}: {problem}{set_in(self.source_of(key))}") from None
        assert isinstance(resolved, dict)
        return {str(key): value for key, value in resolved.items()}

    def source_of(self, key: str) -> str | None:
        """Return the last layer that set a key, a part of it, or a section that holds it; None for a default."""
        for name, source in reversed(self.sources.items()):
            if name == key or name.startswith(f"{key}."):
                return source
        sections = itertools.accumulate(key.split(".")[:-1], "{}.{}".format)
        return next((self.sources[section] for section in sections if section in self.sources), None)

    def last_set(self, keys: list[str]) -> tuple[str, str | None]:
        """Return the key that was set last and its layer; the first key and None if all are defaults."""
        order = list(self.sources)
        latest = max(keys, key=lambda key: order.index(key) if key in order else -1)
        return latest, self.source_of(latest)

    def _reset_other_choices(self, source: str, layer: dict[str, Any]) -> None:
        """Drop the settings of the previous optimizer, schedule or objective if `layer` chooses another one."""
        for section, (kept, default) in _CHOSEN_BY_NAME.items():
            settings, present = layer.get(section), self.values.get(section)
            if not isinstance(settings, dict) or not isinstance(present, DictConfig) or "name" not in settings:
                continue
            if settings["name"] == present.get("name", default):
                continue
            for key, value in flatten(OmegaConf.to_container(present)).items():
                dotted = f"{section}.{key}"
                if key.partition(".")[0] not in (*kept, "name") and self.sources.get(dotted) != source:
                    self._forget(dotted, value)
                    present.pop(key.partition(".")[0], None)

    def _replace(self, key: str, source: str, before: dict[str, Any]) -> None:
        earlier = self.sources.pop(key, None)
        if earlier not in (None, source):
            self.overridden.setdefault(key, []).append((earlier, before.get(key)))
        self.sources[key] = source

    def _forget(self, key: str, value: Any) -> None:
        source = self.sources.pop(key, None)
        if source is not None:
            self.overridden.setdefault(key, []).append((source, value))


def _unset_nulls(schema: type[Settings], values: dict[str, Any]) -> None:
    """Remove keys that are set to null but cannot be null, so that they take their default."""
    for key, value in flatten(values).items():
        allowed = list(annotations_at(schema, key.split(".")))
        if value is None and allowed and not any(allows_none(annotation) for annotation in allowed):
            *path, last = key.split(".")
            section = values
            for name in path:
                section = section[name]
            del section[last]


def _named_recipes(in_file: dict[str, Any], on_command_line: list[tuple[str, Any]], path: str) -> list[Recipe]:
    source, named = path, in_file.get("recipes")
    for key, _ in [*in_file.items(), *on_command_line]:
        if key.startswith("recipes."):
            raise ConfigError(f"{key}: cannot be set alone; name the whole list, such as recipes=[crammed-bert,ema]")
    for key, value in on_command_line:
        if key == "recipes":
            source, named = COMMAND_LINE, value
    recipes = [load_recipe(name, source) for name in _names(named, source)]
    check_compatible(recipes, source)
    return recipes


def changed_recipes(named: Any, in_file: Any, path: str) -> Any:
    """Apply names with a sign, as in `recipes=[-muon,+soap]`, to the recipes of the file; return others as they are.

    Args:
        named: value of `recipes` on the command line.
        in_file: value in the file.
        path: of the file.

    Raises:
        ConfigError: names with and without a sign, or a name to remove that the file does not have.
    """
    changes = as_list(named)
    if not isinstance(changes, list) or not any(isinstance(name, str) and name[:1] in ("+", "-") for name in changes):
        return named
    if not all(isinstance(name, str) and name[:1] in ("+", "-") for name in changes):
        raise ConfigError(
            "recipes: names with + or - change the file's list and names without one replace it; write "
            f"recipes=[{','.join(f'+{name}' if str(name)[:1] not in '+-' else str(name) for name in changes)}]"
        )
    found = _names(in_file, path)
    for sign, name in ((change[0], change[1:]) for change in changes):
        if sign == "+":
            found.append(name)
        elif name in found:
            found.remove(name)
        else:
            raise ConfigError(f"recipes: -{name}: is not a recipe of {path}, which has {', '.join(found) or 'none'}")
    return found


def _names(named: Any, source: str) -> list[str]:
    """Return a new list of the names of recipes. Raises ConfigError if they are none."""
    names = as_list(named)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"recipes: must be a list of names, such as recipes=[crammed-bert,ema]{set_in(source)}")
    return list(names)


def as_list(named: Any) -> Any:
    """Return the value of `recipes` as a list; a single name becomes a list of one, null an empty list."""
    return [] if named is None else [named] if isinstance(named, str) else named
