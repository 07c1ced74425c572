"""Streams to train on and their weights: fixed, or as a function of budget progress."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cram_composer.config.schema.data import CurriculumPointConfig, DataConfig, StreamWeightConfig
from cram_composer.data.manifest import Manifest
from cram_composer.errors import CramError

_PREFIX = "train-"


@dataclass(frozen=True)
class SelectedStream:
    """A train stream to read: its split and at most one of Streaming's weights."""

    split: str
    proportion: float | None = None
    repeat: float | None = None
    choose: int | None = None  # blocks per epoch


def stream_name(split: str) -> str:
    """Return the configuration's name of a train split: `wiki` for train-wiki, `train` for train."""
    return split.removeprefix(_PREFIX)


def select_streams(config: DataConfig, manifest: Manifest) -> list[SelectedStream]:
    """Select the train streams to read, in the manifest's order. Raises CramError."""
    named = set(config.mixture) | {name for point in config.curriculum for name in point.proportions}
    splits = {stream_name(split): split for split in manifest["streams"]}
    for name in sorted(named):
        if name not in splits:
            key = "mixture" if name in config.mixture else "curriculum"
            raise CramError(f"data.{key}: the data set has no stream '{name}'; it has {', '.join(splits)}")
    if config.curriculum:
        return [SelectedStream(split) for name, split in splits.items() if name in named]
    weights = [(split, config.mixture.get(name, StreamWeightConfig())) for name, split in splits.items()]
    if any(weight.proportion is not None for _, weight in weights):
        without = [stream_name(split) for split, weight in weights if weight.proportion is None]
        if without:
            raise CramError(
                f"data.mixture: no proportion for {', '.join(without)}; set one for every stream (0 leaves it out)"
            )
    chosen = [SelectedStream(split, w.proportion, w.repeat, w.choose) for split, w in weights]
    # Streaming distributes leftover blocks to all streams, including those of proportion 0.
    chosen = [stream for stream in chosen if stream.proportion != 0.0 and stream.repeat != 0.0]
    if not chosen:
        raise CramError("data.mixture: the weights of all streams are 0; set at least one > 0")
    return chosen


class Curriculum:
    """Shares of the streams as a function of budget progress: linear between points, constant before and after."""

    def __init__(self, points: Sequence[CurriculumPointConfig], splits: Sequence[str]) -> None:
        self._at = [point.at for point in points]
        self._shares = []
        for point in points:
            total = math.fsum(point.proportions.values())
            self._shares.append([point.proportions.get(stream_name(split), 0.0) / total for split in splits])

    def shares(self, progress: float) -> list[float]:
        """Return one share per stream; they sum to 1."""
        if progress <= self._at[0]:
            return self._shares[0]
        for i in range(1, len(self._at)):
            if progress < self._at[i]:
                part = (progress - self._at[i - 1]) / (self._at[i] - self._at[i - 1])
                return [a + part * (b - a) for a, b in zip(self._shares[i - 1], self._shares[i], strict=True)]
        return self._shares[-1]


def apportion(count: int, shares: Sequence[float], owed: Sequence[float]) -> tuple[list[int], list[float]]:
    """Divide `count` rows among streams by the largest-remainder method, carrying over the remainders.

    Args:
        count: rows to divide.
        shares: of the streams; they sum to 1.
        owed: rows owed to each stream by earlier calls, 0 at first.

    Returns:
        the rows of each stream, and the rows now owed. Over many calls every stream gets its exact share.
    """
    due = [before + count * share for before, share in zip(owed, shares, strict=True)]
    rows = [max(0, math.floor(value)) for value in due]
    while (left := count - sum(rows)) != 0:
        one = 1 if left > 0 else -1
        candidates = [i for i in range(len(rows)) if one > 0 or rows[i]]
        most = max(candidates, key=lambda i: one * (due[i] - rows[i]))
        rows[most] += one
    return rows, [value - taken for value, taken in zip(due, rows, strict=True)]
