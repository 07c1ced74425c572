"""Look-ups of the sections and fields that a dotted key can name."""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cram_composer.config.schema.base import FREE


def members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, without `Annotated` and None; for anything else, a tuple of itself."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) not in (Union, UnionType):
        return (annotation,)
    return tuple(m for argument in get_args(annotation) if argument is not type(None) for m in members(argument))


def sections(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections among the members of an annotation; several if a name or kind chooses one."""
    return [member for member in members(annotation) if isinstance(member, type) and issubclass(member, BaseModel)]


def item_types(annotation: Any) -> tuple[Any, ...]:
    """Return the type of the items of a list, tuple or dict; empty for anything else."""
    return tuple(get_args(m)[-1] for m in members(annotation) if get_origin(m) in (list, tuple, dict))


def literals(annotation: Any) -> list[Any]:
    """Return the choices of a `Literal`; empty for anything else."""
    return [choice for m in members(annotation) if get_origin(m) is Literal for choice in get_args(m)]


def allows_none(annotation: Any) -> bool:
    """Return True if an annotation is optional or of any type."""
    return annotation is Any or annotation is type(None) or type(None) in get_args(annotation)


def tag(section: type[BaseModel]) -> str | None:
    """Return the `name` or `kind` that selects this section among others; None if it has neither."""
    for key in ("name", "kind"):
        if key in section.model_fields and len(choices := literals(section.model_fields[key].annotation)) == 1:
            return str(choices[0])
    return None


def annotations_at(annotation: Any, path: list[str]) -> Iterator[Any]:
    """Yield the annotations that the names of a dotted key lead to; several if a name or kind decides."""
    if not path or annotation is Any:
        yield annotation
        return
    for section in sections(annotation):
        if path[0] in section.model_fields:
            yield from annotations_at(section.model_fields[path[0]].annotation, path[1:])
    for item in item_types(annotation):
        yield from annotations_at(item, path[1:])


def is_free(field: FieldInfo) -> bool:
    """Return True if a key is declared as free to change when a run resumes."""
    return isinstance(field.json_schema_extra, dict) and FREE in field.json_schema_extra


def is_free_key(annotation: Any, path: list[str]) -> bool:
    """Return True if the dotted key with these names, or a section that holds it, is free to change on resume."""
    fields = [section.model_fields[path[0]] for section in sections(annotation) if path[0] in section.model_fields]
    return any(is_free(field) or (len(path) > 1 and is_free_key(field.annotation, path[1:])) for field in fields)


def has_key(schema: type[BaseModel], dotted: str) -> bool:
    """Return True if the schema has a dotted key under any optimizer, schedule or kind of source."""
    return any(True for _ in annotations_at(schema, dotted.split(".")))
