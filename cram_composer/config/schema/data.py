"""The `data` section of a run: where the shards are and how they are read."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from cram_composer.config.schema.base import ByteSize, Duration, FilePath, Place, Settings, Share, key
from cram_composer.config.units import parse_duration


class StreamWeightConfig(Settings):
    """Weight of a stream in an epoch, as in Streaming's `Stream`. Set at most one; default: all of it, once."""

    proportion: NonNegativeFloat | None = key(None, "share of the epoch, relative to other proportions", le=1e9)
    repeat: NonNegativeFloat | None = key(None, "passes over the stream per epoch", le=1000.0)
    choose: PositiveInt | None = key(None, "blocks per epoch", le=10**7)

    @model_validator(mode="after")
    def _check_one(self) -> StreamWeightConfig:
        given = [key for key, value in self if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; keep one")
        return self


class CurriculumPointConfig(Settings):
    """Proportions of the streams at a point of the budget, interpolated linearly between points."""

    at: Share = key(0.0, "progress of the budget")
    proportions: dict[str, Annotated[float, Field(ge=0.0, le=1e9)]] = key(dict, "proportion of each stream")

    @model_validator(mode="after")
    def _check_sum(self) -> CurriculumPointConfig:
        if not sum(self.proportions.values()):
            raise ValueError(f"proportions: must be >= 0 and not all zero (at {self.at})")
        return self


class DataConfig(Settings):
    """The data set: a folder, a copy in object storage, or a data YAML that builds it.

    A run resumes with its data set from any place; a data set with another manifest is refused.
    """

    local: FilePath | None = key(None, "folder of a data set, or cache of `remote`; null: output of `build`", free=True)
    remote: Place | None = key(None, "the same folder in object storage: s3://bucket/path, gs://, azure://", free=True)
    mirror: Place | None = key(None, "copy of `remote`, for shards that cannot be read from `remote`", free=True)
    cache_limit: ByteSize | None = key(
        None, "disk space for shards of `remote`, such as 50gb; the oldest are evicted", free=True
    )
    deadline: Duration = key("2m", "time for a file of `remote`, retries included; at least 10 s", free=True)
    prefetch: NonNegativeInt = key(64, "blocks read ahead per device", le=10**5, free=True)
    order: Literal["auto", "shuffled", "stored"] = key(
        "auto", "order of the rows; auto: stored if the build ordered them, else shuffled"
    )
    mixture: dict[str, StreamWeightConfig] = key(dict, "weight of each stream; default: all of every stream, once")
    curriculum: list[CurriculumPointConfig] = key(list, "mixture that changes over the budget")
    build: FilePath | None = key(None, "data YAML that builds the data set", free=True)
    build_if_missing: bool = key(False, "run `build` before the clock starts if the data set is missing", free=True)
    num_workers: NonNegativeInt = key(1, "reader processes per device", le=64, free=True)
    timeout: Duration = key("5m", "end the run when the reader processes deliver nothing for this long", free=True)
    verify: Literal["full", "size"] = key(
        "full", "check of local shards before the clock starts, by hash or by size only", free=True
    )

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.remote is None and self.build is None:
            for key in ("mirror", "cache_limit"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key}: has no effect without data.remote; set data.remote or remove it")
        retried = parse_duration(self.deadline) * (1 if self.mirror is None else 2)
        if self.remote is not None and parse_duration(self.timeout) <= retried:
            raise ValueError(
                f"timeout: must be longer than data.deadline times the number of copies ({retried:.0f} s), got "
                f"{self.timeout}"
            )
        if self.mixture and self.curriculum:
            raise ValueError("curriculum: excludes data.mixture; remove one of them")
        for before, point in itertools.pairwise(self.curriculum):
            if point.at <= before.at:
                raise ValueError(f"curriculum: points must be in increasing order, got {point.at} after {before.at}")
        return self
