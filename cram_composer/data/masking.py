"""Masked-language-model masking (Devlin et al. 2018, section 3.1), vectorised over a batch, with static shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from cram_composer.config.objective_schema import ObjectiveConfig
from cram_composer.data.packing import document_ids
from cram_composer.data.row_random import RowRandom

IGNORED = -100  # label of a slot that holds no masked token; torch's cross-entropy skips it


@dataclass(frozen=True)
class Masker:
    """How tokens are chosen and replaced.

    Chosen tokens stand in K slots per row, K being fixed for a row length so that shapes never change; slots that are
    not needed carry the label -100. Special tokens are never chosen, nor put in place of a chosen one.
    """

    vocab_size: int
    special_ids: tuple[int, ...]
    mask_id: int
    scheme: str = "80-10-10"  # or all-mask
    fixed_count: bool = True  # round(probability * tokens) in every row, else each token on its own (Bernoulli)
    max_probability: float = 0.25  # the highest rate this masker will be asked for; sets K
    pad_id: int | None = None  # rows may hold padding: batches get an attention_mask
    sep_id: int | None = None  # ends a document: batches get document_ids
    _is_special: NDArray = field(init=False, repr=False, compare=False)  # bool [vocab_size]
    _ordinary: NDArray = field(init=False, repr=False, compare=False)  # the other ids

    def __post_init__(self) -> None:
        is_special = np.zeros(self.vocab_size, dtype=bool)
        is_special[list(self.special_ids)] = True
        object.__setattr__(self, "_is_special", is_special)
        object.__setattr__(self, "_ordinary", np.flatnonzero(~is_special))

    def capacity(self, seq_length: int) -> int:
        """K, the slots per row of `seq_length` tokens; Bernoulli rows get room for five standard deviations."""
        mean = self.max_probability * seq_length
        if self.fixed_count:
            return max(1, round(mean))
        return min(seq_length, math.ceil(mean + 5.0 * math.sqrt(mean * (1.0 - self.max_probability))))

    def __call__(
        self, rows: NDArray, probability: float, rng: np.random.Generator | RowRandom
    ) -> dict[str, torch.Tensor]:
        """Mask `rows` [B, L] (any integer dtype) at `probability`.

        Returns int64 tensors: input_ids [B, L], masked_positions [B, K] (columns, ascending over used slots) and labels
        [B, K] (original ids, -100 in unused slots). With `pad_id` also attention_mask [B, L], 0 at padding, and with
        `sep_id` document_ids [B, L], see `packing.document_ids`.
        """
        length = rows.shape[1]
        slots = self.capacity(length)
        inputs = rows.astype(np.int64)
        score = np.asarray(rng.random(rows.shape, dtype=np.float32))
        score[self._is_special[inputs]] = 2.0  # last in any order, above every probability
        threshold: float
        wanted: int | NDArray  # tokens of a row
        if self.fixed_count:
            threshold = 1.5  # any token that is not special
            wanted = min(slots, max(1, round(probability * length)))
            if self.pad_id is not None:  # a short row is to be left as readable as a full one
                tokens = (rows != self.pad_id).sum(axis=1, keepdims=True)
                wanted = np.clip(np.rint(probability * tokens), 1, slots)
        else:
            threshold, wanted = probability, slots
        # A row's lowest scores are its chosen tokens; sorting them by column keeps the gather in memory order.
        positions = np.argpartition(score, slots - 1, axis=1)[:, :slots]
        order = np.argsort(np.take_along_axis(score, positions, axis=1), axis=1)
        positions = np.take_along_axis(positions, order, axis=1)
        used = (np.take_along_axis(score, positions, axis=1) < threshold) & (np.arange(slots) < wanted)
        order = np.argsort(np.where(used, positions, length), axis=1, kind="stable")
        positions = np.take_along_axis(positions, order, axis=1)
        used = np.take_along_axis(used, order, axis=1)

        originals = np.take_along_axis(inputs, positions, axis=1)
        replacement = np.full_like(originals, self.mask_id)
        if self.scheme == "80-10-10":
            fate = rng.random(originals.shape, dtype=np.float32)
            random_ids = self._ordinary[rng.integers(0, len(self._ordinary), originals.shape)]
            replacement = np.where(fate < 0.8, replacement, np.where(fate < 0.9, random_ids, originals))
        np.put_along_axis(inputs, positions, np.where(used, replacement, originals), axis=1)
        batch = {"input_ids": inputs, "masked_positions": positions, "labels": np.where(used, originals, IGNORED)}
        if self.pad_id is not None:
            visible = (rows != self.pad_id).astype(np.int64)
            visible[:, 0] = 1  # a row of nothing but padding has to attend to something
            batch["attention_mask"] = visible
        if self.sep_id is not None:
            batch["document_ids"] = document_ids(rows, self.sep_id, self.pad_id)
        return {name: torch.from_numpy(array) for name, array in batch.items()}


def build_masker(
    objective: ObjectiveConfig,
    vocab_size: int,
    special_ids: tuple[int, ...],
    mask_id: int,
    pad_id: int | None = None,
    sep_id: int | None = None,
) -> Masker:
    """The masker of a training objective; the last two as in Masker."""
    return Masker(
        vocab_size,
        special_ids,
        mask_id,
        scheme=objective.masking,
        fixed_count=objective.positions == "fixed",
        max_probability=max(objective.mlm_probability, objective.final_mlm_probability or 0.0),
        pad_id=pad_id,
        sep_id=sep_id,
    )


def evaluation_masker(
    vocab_size: int,
    special_ids: tuple[int, ...],
    mask_id: int,
    pad_id: int | None = None,
    sep_id: int | None = None,
) -> Masker:
    """15 % of every row, all [MASK]: the same whatever a run trains with, so that runs can be compared."""
    return Masker(
        vocab_size,
        special_ids,
        mask_id,
        scheme="all-mask",
        fixed_count=True,
        max_probability=0.15,
        pad_id=pad_id,
        sep_id=sep_id,
    )
