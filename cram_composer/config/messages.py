"""Error messages of the schema in one line: key, problem, value, and the layer that set it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from cram_composer.config.renamed import REMOVED_KEYS, RENAMED_KEYS
from cram_composer.config.schema.introspect import item_types, literals, sections, tag
from cram_composer.errors import ConfigError

_EXPECTED = {
    "int": "an integer",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "model": "a mapping",
}
_MAX_VALUE_CHARACTERS = 80  # of a printed value
_LIMITS = {
    "greater_than_equal": (">=", "ge"),
    "greater_than": (">", "gt"),
    "less_than_equal": ("<=", "le"),
    "less_than": ("<", "lt"),
}


def config_error(
    error: ValidationError, schema: type[BaseModel], last_set: Callable[[list[str]], tuple[str, str | None]]
) -> ConfigError:
    """Turn the first problem of a validation into a ConfigError.

    Args:
        error: error of validating against `schema`.
        schema: class of the whole configuration.
        last_set: returns which of some dotted keys was set last, and its layer; None for a default.
    """
    problems = error.errors(include_url=False)
    # A mistyped key may be the reason that another one is missing or wrong.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    section, path = _locate(schema, problem["loc"])
    key, text = _describe(problem, section, path)
    involved = [f"{key.rpartition('.')[0]}.{name}" for name in re.findall(r"(\w+)=", text)]
    latest, source = last_set([key, *involved])
    origin = set_in(source, "" if latest == key else latest)
    return ConfigError(f"{key}: {text}{origin}" if key else f"{text}{origin}")


def set_in(source: str | None, key: str = "") -> str:
    """Return " (set in LAYER)" or " (KEY set in LAYER)"; empty for a default, whose `source` is None."""
    if source is None:
        return ""
    place = "on the command line" if source == "command line" else f"in {source}"
    return f" ({key} set {place})" if key else f" (set {place})"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'NAME'?" with the known name closest to `name`; empty if none is close."""
    folded = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=0.6)
    return f"; did you mean '{folded[close[0]]}'?" if close else ""


def _locate(annotation: Any, location: Iterable[int | str]) -> tuple[type[BaseModel] | None, list[str]]:
    """Return the section that holds the last part of an error's location, and the location without union tags."""
    section: type[BaseModel] | None = None
    path: list[str] = []
    for part in location:
        found = sections(annotation)
        if len(found) > 1:  # `part` is the tag that chose one of them
            annotation = next(one for one in found if tag(one) == part)
            continue
        if path and section is not None and not found and not item_types(annotation):
            continue  # the member of a union of scalars
        path.append(str(part))
        section = found[0] if found else None
        if section is not None:
            field = section.model_fields.get(str(part))
            annotation = field.annotation if field is not None else None
        else:
            annotation = next(iter(item_types(annotation)), None)
    return section, path


def _describe(problem: Mapping[str, Any], section: type[BaseModel] | None, path: list[str]) -> tuple[str, str]:
    """Return the dotted key of a problem and its description."""
    kind, value, key = problem["type"], problem["input"], ".".join(path)
    context: Mapping[str, Any] = problem.get("ctx", {})
    if kind == "extra_forbidden":
        return key, _unknown_key(key, path, section)
    if kind == "union_tag_invalid":
        known = re.findall(r"'([^']+)'", context["expected_tags"])
        chooser = "name" if context["discriminator"] == "'name'" else "kind"
        return f"{key}.{chooser}", not_one_of(context["tag"], known)
    if kind == "literal_error":
        assert section is not None
        return key, not_one_of(value, [str(c) for c in literals(section.model_fields[path[-1]].annotation)])
    if kind == "value_error":
        text = str(context["error"])
        named = re.match(r"(\w+): ", text)
        if named and section is None and not key:
            return named[1], text[named.end() :]
        return (f"{key}.{named[1]}", text[named.end() :]) if named else (key, text)
    if kind in _LIMITS:
        sign, name = _LIMITS[kind]
        limit = context[name]
        return key, f"must be {sign} {limit if isinstance(limit, int) else f'{limit:g}'}, got {shortened(str(value))}"
    if kind == "missing" and not path[-1].isdigit():
        return key, "is required"
    if kind == "missing":
        return key.rpartition(".")[0], f"has too few values: {list(value)}"
    if kind in ("too_short", "too_long"):
        wanted = context.get("min_length", context.get("max_length"))
        return key, f"must have {wanted} values, got {context['actual_length']}: {value}"
    expected = _EXPECTED.get(kind) or _EXPECTED.get(kind.split("_")[0])
    field = section.model_fields.get(path[-1]) if section is not None else None
    if expected and field is not None and (words := literals(field.annotation)):
        expected += f" or {', '.join(words)}"
    hint = f"; write {key}.name={value}" if key in ("optimizer", "schedule") and isinstance(value, str) else ""
    return key, f"must be {expected}, got {_shown(value)}{hint}" if expected else problem["msg"]


def _unknown_key(key: str, path: list[str], section: type[BaseModel] | None) -> str:
    if key in RENAMED_KEYS:
        return f"unknown key; did you mean '{RENAMED_KEYS[key]}'?"
    if key in REMOVED_KEYS:
        return f"removed; {REMOVED_KEYS[key]}"
    known = list(section.model_fields) if section is not None else []
    if not known:
        return "unknown key; this section has no settings"
    chosen = tag(section) if section is not None else None
    hint = did_you_mean(path[-1], known) or f"; valid keys: {', '.join(sorted(known))}"
    return f"unknown key{f' for {chosen!r}' if chosen else ''}{hint}"


def not_one_of(value: Any, known: Iterable[str]) -> str:
    """Return the error text for a value outside `known`, with the closest match."""
    known = list(known)
    return f"must be one of {', '.join(known)}, got '{value}'{did_you_mean(str(value), known)}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else shortened(repr(value))


def shortened(text: str) -> str:
    """Cut a printed value that is too long for a line."""
    return text if len(text) <= _MAX_VALUE_CHARACTERS else f"{text[:_MAX_VALUE_CHARACTERS]}…"
