"""The base class of every section of a configuration, and the types that several sections share."""

from __future__ import annotations

import re
from typing import Annotated, Any, Union

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from cram_composer.config.paths import expand
from cram_composer.config.units import name_problem, parse_bytes, parse_duration, split_uri


class Settings(BaseModel):
    """Base class of a section. Unknown keys, NaN, infinities and booleans instead of numbers are errors."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
        validate_assignment=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_booleans_for_numbers(cls, values: Any) -> Any:
        for key, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, bool) and key in cls.model_fields and cls.model_fields[key].annotation in _NUMBERS:
                raise ValueError(f"{key}: must be a number, got {str(value).lower()}")
        return values


FREE = "x-free-on-resume"


def key(default: Any, meaning: str, *, free: bool = False, **limits: Any) -> Any:
    """Declare a key of a section.

    Args:
        default: default value, a callable that creates it, or `...` for a required key.
        meaning: description in the key reference and in editors.
        free: the key, with any section below it, may change when a run resumes, because it does not affect what is
            learnt.
        limits: limits of pydantic's Field, such as ge=0 or le=1.
    """
    settings = {"description": meaning, "json_schema_extra": {FREE: True} if free else None, **limits}
    return Field(default_factory=default, **settings) if callable(default) else Field(default, **settings)


def default_of(field: FieldInfo) -> Any:
    """Return the default of a field that is not required."""
    make: Any = field.default_factory  # get_default of pydantic 2.10 calls none
    return field.default if make is None else make()


def chosen_by_name(base: type[Settings]) -> Any:
    """Return the union of all subclasses of `base` that declare a `name`, discriminated by it and sorted."""
    found, queue = {}, [base]
    while queue:
        queue += (section := queue.pop()).__subclasses__()
        if not (name := section.model_fields["name"]).is_required():
            found[name.default] = section
    return Annotated[Union[tuple(found[name] for name in sorted(found))], Field(discriminator="name")]  # noqa: UP007


def _checked_duration(text: str) -> str:
    parse_duration(text)
    return text


def _checked_size(text: str) -> str:
    parse_bytes(text)
    return text


def _checked_suffix(suffix: str) -> str:
    if re.fullmatch(r"\.[^./]+", suffix) is None:
        raise ValueError(f"{suffix!r} must be a dot and letters, such as .py")
    return suffix.lower()


def _checked_path(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError(f"must be a path, got {text!r}")
    expand(text)
    return text


def _checked_place(text: str) -> str:
    split_uri(text)
    return _checked_path(text)


def _checked_name(text: str) -> str:
    if text and (problem := name_problem(text)) is not None:
        raise ValueError(f"{text!r} {problem}; use a name such as my-run, without '..' and a leading '/'")
    return text


_NUMBERS = (int, float, int | None, float | None)

Share = Annotated[float, Field(ge=0.0, le=1.0)]
"""A fraction, usually of the budget."""
Rate = Annotated[float, Field(ge=0.0, le=0.9)]
"""A probability of dropping something."""
Duration = Annotated[str, AfterValidator(_checked_duration)]
"""Seconds as text: 24h, 90m, 600s, 1d, 1h30m."""
ByteSize = Annotated[str, AfterValidator(_checked_size)]
"""Bytes as text: 50gb, 500mb."""
FilePath = Annotated[str, AfterValidator(_checked_path)]
"""A path on this machine; ~ and $VARIABLES expand."""
Place = Annotated[str, AfterValidator(_checked_place)]
"""A folder or the URI of one in object storage: s3://bucket/path, gs://, azure://."""
TextSuffix = Annotated[str, AfterValidator(_checked_suffix)]
"""A suffix of files, such as .py."""
Name = Annotated[str, AfterValidator(_checked_name)]
"""A name that becomes a folder below another one; empty for the default."""
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Betas = tuple[Beta, Beta]
"""Decay rates of the first and the second moment."""
