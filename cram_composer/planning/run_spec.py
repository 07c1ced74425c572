"""Specification of a run to plan: its configuration, facts about its data, its model and loader."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from cram_composer.config import compose
from cram_composer.config.schema.data_build import DataBuildConfig
from cram_composer.config.schema.run import DataConfig, RunConfig
from cram_composer.config.validation.run import check_row_length
from cram_composer.data.loading.mixture import select_streams
from cram_composer.data.loading.prepare import resolve_location
from cram_composer.data.loading.stream import RowStream, TrainLoader
from cram_composer.data.manifest import MANIFEST, Manifest, load_manifest
from cram_composer.data.masking import MaskedLMCollator, build_collator, last_collator, mean_capacity
from cram_composer.models.factory import build_model
from cram_composer.models.training_model import MaskedLMTrainingModel, build_training_model

_SPECIAL_TOKENS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}  # of a tokenizer that is not built yet


@dataclass(frozen=True)
class DataFacts:
    """Properties of a data set that determine the size of a run; `rows_per_epoch` is None if it is not built."""

    sequence_length: int
    vocab_size: int
    special_tokens: Mapping[str, int]
    packing: str
    rows_per_epoch: int | None
    source: str  # origin of these facts


def read_data_facts(config: DataConfig) -> DataFacts:
    """Read the facts from the manifest of a local data set, or from the configuration of its build."""
    root, remote = resolve_location(config)
    if (root / MANIFEST).is_file():
        manifest = load_manifest(root)
        return DataFacts(
            manifest["sequence_length"],
            manifest["vocab_size"],
            manifest["special_tokens"],
            manifest["packing"],
            epoch_rows(config, manifest),
            str(root),
        )
    build = DataBuildConfig() if config.build is None else compose(DataBuildConfig, config.build, []).config
    source = config.build or "the defaults of a data build"
    where = root if remote is None else remote
    return DataFacts(
        build.packing.sequence_length,
        build.tokenizer.vocab_size,
        _SPECIAL_TOKENS,
        build.packing.kind,
        None,
        f"{source}, because {where if remote is None else root} has no manifest",
    )


def epoch_rows(config: DataConfig, manifest: Manifest) -> int:
    """Return the rows of an epoch under Streaming's stream weights; partial blocks of a `repeat` are rounded."""
    streams = select_streams(config, manifest)
    total = 0.0
    for stream in streams:
        counts = manifest["splits"][stream.split]
        if stream.choose is not None:
            total += stream.choose * counts["rows"] / counts["blocks"]
        else:
            total += counts["rows"] * (1.0 if stream.repeat is None else stream.repeat)
    return round(total)


@dataclass(frozen=True)
class RunSpec:
    """A run on `devices` devices, with the facts about its data."""

    config: RunConfig
    facts: DataFacts
    devices: int

    @property
    def collator(self) -> MaskedLMCollator:
        """The run's first collator. It masks tokens instead of words, which need a tokenizer; the count is the same."""
        tokens = self.facts.special_tokens
        return build_collator(
            self.config.objective.model_copy(update={"unit": "token"}),
            self.facts.vocab_size,
            tuple(tokens.values()),
            tokens["mask"],
            tokens["pad"] if self.facts.packing == "best-fit" else None,
            tokens["sep"] if self.config.model.document_masking else None,
        )

    def mean_capacity(self, seq_length: int) -> float:
        """Return the predicted positions per row of `seq_length` tokens, averaged over the budget."""
        return mean_capacity(self.collator, self.config.objective, seq_length)

    def largest_collator(self) -> MaskedLMCollator:
        """Return the collator of the phase with the most predicted positions."""
        phases = self.collator, last_collator(self.collator, self.config.objective)
        return max(phases, key=lambda collator: collator.capacity(self.facts.sequence_length))

    def build_loader(self, microbatch: int | None = None, pin_memory: bool = False) -> TrainLoader:
        """Build the loader of one device over random rows, with the most labels of the run.

        `microbatch` sets the rows of its only microbatch.
        """
        stream = _RandomRowStream(self.facts)
        return TrainLoader(
            cast(RowStream, stream),
            self.largest_collator(),
            rows=microbatch or self.config.train.batch_size // self.devices,
            microbatch=microbatch or self.config.train.microbatch,
            seq_length=self.facts.sequence_length,
            seed=self.config.seed,
            rank=0,
            pin_memory=pin_memory,
        )

    def build_model(self, autocast_dtype: torch.dtype | None = None, compile: str = "off") -> MaskedLMTrainingModel:
        """Build the run's model with fresh weights. Raises CramError."""
        check_row_length(self.config, self.facts.sequence_length)
        facts = self.facts
        network = build_model(self.config.model, facts.vocab_size, facts.special_tokens, self.config.objective)
        return build_training_model(network, autocast_dtype, compile)


class _RandomRowStream:
    """Endless rows of random tokens; the cost of a step does not depend on the text."""

    shares = (1.0,)

    def __init__(self, facts: DataFacts) -> None:
        self._facts = facts
        self._random = np.random.default_rng(0)

    def peek(self, rows: int) -> NDArray[np.int64]:
        """Return rows [rows, sequence_length]."""
        return self._random.integers(0, self._facts.vocab_size, (rows, self._facts.sequence_length))

    def advance(self, rows: int) -> None:
        """Do nothing: every call of `peek` returns other rows."""


def divisors(number: int) -> list[int]:
    """Return all divisors in ascending order."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})
