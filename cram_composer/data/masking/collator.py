"""The collator: chooses the tokens of a batch to predict, replaces them, and marks where to read predictions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cram_composer.config.schema.objective import MaskedLMConfig, ObjectiveConfig
from cram_composer.data.masking.row_random import RowRandom
from cram_composer.data.masking.units import MAX_WORD_TOKENS, span_starts, word_starts
from cram_composer.data.pipeline.rows.packing import document_ids

IGNORED = -100  # label of an unused slot; torch's cross-entropy ignores it
_MASKED_LM = MaskedLMConfig()
_EXCLUDED = np.inf  # score of tokens that must not be chosen


@dataclass(frozen=True, eq=False)
class TokenWeights:
    """Weights of the tokens of a vocabulary in the choice of tokens to mask, fp32 [vocab_size], above 0."""

    values: NDArray


@dataclass(frozen=True)
class MaskedLMCollator:
    """Chooses and replaces the tokens to predict.

    Chosen tokens are listed in K slots per row, with K fixed for a row length so that shapes never change; unused slots
    have the label -100. Special tokens are neither chosen nor used as replacements.

    Tokens are chosen one by one, by whole words, or by spans of whole words; a last word that does not fit is left out,
    so a row falls short of its count by less than one word. A span is replaced as a whole: all [MASK], all random or
    all kept (SpanBERT, Joshi et al. 2019, arXiv 1907.10529, section 3.1); otherwise each token is replaced
    independently.

    With `shift`, a token is predicted at the position before its own, where a causal model predicts it too (masked
    next-token prediction: GPT-BERT, Charpentier and Samuel 2024, arXiv 2410.24159, section 2). A row's first token and,
    with `sep_id`, a document's first token have no such position, so they (or their words) are not chosen.
    Each row is used for causal attention with probability `causal_fraction`: such rows keep all their
    tokens. As many random tokens as in a masked row are labels, so the causal loss is estimated without bias and at the
    same weight; with `all_causal_labels` every token is one, and every row has a slot per token.

    With weights of tokens in a call, tokens of a row are chosen in proportion to them, at the same rate: with a fixed
    count one after another without replacement (Efraimidis and Spirakis 2006, algorithm A-Res), else each with its own
    probability. This applies to single tokens of rows that are not causal.

    With `draws`, every slot has a random number for the sample that replaces its token (replaced-token detection), so
    that samples depend neither on the number of devices nor on the size of microbatches.
    """

    vocab_size: int
    special_ids: tuple[int, ...]
    mask_id: int
    scheme: str = "80-10-10"  # or all-mask
    fixed_count: bool = True  # round(probability * tokens) in every row, else each token independently (Bernoulli)
    max_probability: float = 0.25  # the highest probability of any call; determines K
    pad_id: int | None = None  # rows may hold padding: batches get an attention_mask
    sep_id: int | None = None  # ends a document: batches get document_ids
    unit: str = "token"  # or word, span; with a fixed count
    joins: NDArray | None = field(default=None, repr=False, compare=False)  # words.word_joins, for words and spans
    shift: bool = False
    causal_fraction: float = 0.0  # above 0, with `shift`: batches get causal
    all_causal_labels: bool = False
    min_probability: float | None = None  # rows have rates from this to the probability of the call, with a fixed count
    draws: bool = False  # batches get draws
    kept_masks: float | None = None  # with `draws`: share of the slots that stay masked; batches get kept
    _is_special: NDArray = field(init=False, repr=False, compare=False)  # bool [vocab_size]
    _ordinary: NDArray = field(init=False, repr=False, compare=False)  # the other ids
    _joins: NDArray = field(init=False, repr=False, compare=False)  # uint8 [vocab_size]; no word holds a special token

    def __post_init__(self) -> None:
        is_special = np.zeros(self.vocab_size, dtype=bool)
        is_special[list(self.special_ids)] = True
        object.__setattr__(self, "_is_special", is_special)
        object.__setattr__(self, "_ordinary", np.flatnonzero(~is_special))
        if self.unit != "token":
            if self.joins is None:
                raise ValueError(f"unit '{self.unit}' needs joins")
            object.__setattr__(self, "_joins", np.where(is_special, np.uint8(0), self.joins))

    def capacity(self, seq_length: int) -> int:
        """Return K, the slots per row of `seq_length` tokens; Bernoulli rows get room for five standard deviations."""
        mean = self.max_probability * seq_length
        if self.causal_fraction and self.all_causal_labels:
            return seq_length
        if self.fixed_count:
            return max(1, round(mean))
        return min(seq_length, math.ceil(mean + 5.0 * math.sqrt(mean * (1.0 - self.max_probability))))

    def __call__(
        self,
        rows: NDArray,
        probability: float,
        rng: np.random.Generator | RowRandom,
        weights: TokenWeights | None = None,
    ) -> dict[str, torch.Tensor]:
        """Mask `rows` [B, L] (any integer dtype) at `probability`, in proportion to `weights` of the vocabulary.

        Returns:
            int64 tensors: input_ids [B, L], masked_positions [B, K] (columns to read predictions at, ascending over
            used slots) and labels [B, K] (original ids, -100 in unused slots). With `pad_id` also attention_mask [B,
            L], 0 at padding; with `sep_id` document_ids [B, L], see `packing.document_ids`; with a `causal_fraction`
            causal, bool [B]; with `draws` draws, fp32 [B, K] uniform in [0, 1); with `kept_masks` kept, bool [B, K].
        """
        count, length = rows.shape
        slots = self.capacity(length)
        inputs = rows.astype(np.int64)
        # The order of draws is fixed, so that an additional objective does not change the draws of the others.
        score = np.asarray(rng.random(rows.shape, dtype=np.float32))
        if weights is not None:
            score = self._weigh(score, inputs, weights.values)
        if self.scheme == "80-10-10":
            tenths = 10.0 * rng.random((count, slots))
        causal = rng.random((count, 1)) < self.causal_fraction if self.causal_fraction else None
        rates: float | NDArray = probability  # [B, 1] if rows differ
        if self.min_probability is not None:
            rates = self.min_probability + (probability - self.min_probability) * rng.random((count, 1))

        columns = _columns(length)
        words = units = columns  # [L] or [B, L], the first column of each token's word or unit
        if self.unit != "token":
            words = units = word_starts(rows, self._joins, min(MAX_WORD_TOKENS, slots))
        if self.unit == "span":
            chance = np.asarray(rng.random(rows.shape, dtype=np.float32))
            units = span_starts(words, self._is_special[inputs], chance)
        if self.unit != "token" and causal is not None:
            words, units = np.where(causal, columns, words), np.where(causal, columns, units)
        complete = causal if self.all_causal_labels else None
        positions, used = self._choose_positions(inputs, rates, complete, score, words, units)

        flat = inputs.reshape(-1)
        flat_positions = positions + length * _columns(count)[:, None]
        originals = flat[flat_positions]
        replacement: int | NDArray = self.mask_id
        if self.scheme == "80-10-10":
            # The fraction beyond the tenth is uniform and independent of it: it selects the random token.
            random_ids = self._ordinary[(tenths % 1.0 * len(self._ordinary)).astype(np.int64)]
            if self.unit == "span":
                tenths = _first_of_group(tenths, np.take_along_axis(units, positions, axis=1))
            replacement = np.where(tenths < 8.0, self.mask_id, np.where(tenths < 9.0, random_ids, originals))
        flat[flat_positions] = np.where(used if causal is None else used & ~causal, replacement, originals)
        batch = {
            "input_ids": inputs,
            "masked_positions": np.maximum(positions - 1, 0) if self.shift else positions,
            "labels": np.where(used, originals, IGNORED),
        }
        if self.pad_id is not None:
            visible = (rows != self.pad_id).astype(np.int64)
            visible[:, 0] = 1  # a row of padding alone must attend to something
            batch["attention_mask"] = visible
        if self.sep_id is not None:
            batch["document_ids"] = document_ids(rows, self.sep_id, self.pad_id)
        if causal is not None:
            batch["causal"] = causal[:, 0]
        if self.draws:
            batch["draws"] = np.ascontiguousarray(rng.random((count, slots), dtype=np.float32))
        if self.kept_masks is not None:
            batch["kept"] = used & (rng.random((count, slots)) < self.kept_masks)
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _weigh(self, score: NDArray, inputs: NDArray, weights: NDArray) -> NDArray:
        """Change uniform scores so that tokens with the lowest ones are chosen in proportion to their weights."""
        weight = weights[inputs]
        if self.fixed_count:
            return -np.log1p(-score) / weight
        candidates = ~self._is_special[inputs]
        total = np.where(candidates, weight, 0.0).sum(axis=1, keepdims=True)
        mean = total / np.maximum(candidates.sum(axis=1, keepdims=True), 1)
        return (score * mean / weight).astype(np.float32)

    def _choose_positions(
        self,
        inputs: NDArray,
        rates: float | NDArray,
        complete: NDArray | None,
        score: NDArray,
        words: NDArray,
        units: NDArray,
    ) -> tuple[NDArray, NDArray]:
        """Return columns [B, K] and a mask of chosen tokens; a unit has the uniform score of its first token.

        Rows of `complete` [B, 1] have all their tokens chosen, others the share `rates` (one, or [B, 1]).
        """
        count, length = inputs.shape
        slots = self.capacity(length)
        excluded = self._is_special[inputs]
        if self.shift:
            excluded[:, 0] = True
            if self.sep_id is not None:
                excluded[:, 1:] |= inputs[:, :-1] == self.sep_id
            if self.unit != "token":
                excluded = np.take_along_axis(excluded, words, axis=1)
        if self.unit != "token":
            score = np.take_along_axis(score, units, axis=1)
        score[excluded] = _EXCLUDED

        limit: NDArray = _EXCLUDED_KEY  # any token that is not excluded
        wanted: int | NDArray  # tokens per row
        if not self.fixed_count:
            limit, wanted = _sort_keys(np.float32(rates)), slots
        elif self.pad_id is None and isinstance(rates, float):
            wanted = min(slots, max(1, round(rates * length)))
        else:  # a short row is masked at the same rate as a full one
            tokens = length if self.pad_id is None else (inputs != self.pad_id).sum(axis=1, keepdims=True)
            wanted = np.clip(np.rint(rates * tokens), 1, slots).astype(np.int64)
        if complete is not None:
            limit, wanted = np.where(complete, _EXCLUDED_KEY, limit), np.where(complete, slots, wanted)

        # A key combines score (the bits of non-negative floats sort like their values), word and column. Sorting keys
        # is several times as fast as sorting indices by them.
        keys = _sort_keys(score)
        keys |= _columns(length, np.uint64)
        if self.unit != "token":
            keys |= words.astype(np.uint64) << 16
        keys.sort(axis=1)
        first = keys[:, :slots]
        used = first < limit
        if not (isinstance(wanted, int) and wanted == slots):
            used &= _columns(slots) < wanted
        if self.unit != "token":  # a word that continues beyond the last wanted token does not fit
            keys = np.append(keys, np.full((count, 1), np.iinfo(np.uint64).max), axis=1)
            cut = keys[:, wanted, None] if isinstance(wanted, int) else np.take_along_axis(keys, wanted, axis=1)
            used &= first >> 16 != cut >> 16
        # Sorted by column, unused slots last, so that the gather reads memory in order.
        columns = (first & 0xFFFF).astype(np.int64)
        if used.all():
            columns.sort(axis=1)
            return columns, used
        columns = np.sort(np.where(used, columns, columns + length), axis=1)
        used = columns < length
        return np.where(used, columns, columns - length), used


def _sort_keys(scores: NDArray | np.float32) -> NDArray:
    """Convert non-negative fp32 scores to the upper half of 64-bit sort keys."""
    keys = np.asarray(scores).view(np.uint32).astype(np.uint64)
    keys <<= 32
    return keys


_EXCLUDED_KEY = _sort_keys(np.float32(_EXCLUDED))


@cache
def _columns(count: int, dtype: type = np.int64) -> NDArray:
    columns: NDArray = np.arange(count, dtype=dtype)
    columns.flags.writeable = False
    return columns


def _first_of_group(values: NDArray, groups: NDArray) -> NDArray:
    """Give each slot of `values` [B, K] the value of the first slot of its group; groups are contiguous."""
    starts = np.ones(groups.shape, dtype=bool)
    starts[:, 1:] = groups[:, 1:] != groups[:, :-1]
    first = np.maximum.accumulate(np.where(starts, np.arange(groups.shape[1]), 0), axis=1)
    return np.take_along_axis(values, first, axis=1)


def build_collator(
    objective: ObjectiveConfig,
    vocab_size: int,
    special_ids: tuple[int, ...],
    mask_id: int,
    pad_id: int | None = None,
    sep_id: int | None = None,
    joins: NDArray | None = None,
) -> MaskedLMCollator:
    """Build the collator of an objective; the last three arguments as in MaskedLMCollator."""
    return MaskedLMCollator(
        vocab_size,
        special_ids,
        mask_id,
        fixed_count=objective.positions == "fixed",
        min_probability=objective.min_mlm_probability,
        pad_id=pad_id,
        sep_id=sep_id,
        unit=objective.unit,
        joins=joins,
        shift=objective.shift,
        draws=objective.name == "rtd",
        kept_masks=getattr(objective, "corrective_masks", None),
        **_phase(objective, last=False),
    )


def last_collator(first: MaskedLMCollator, objective: ObjectiveConfig) -> MaskedLMCollator:
    """Return the collator from `objective.switch` on; `first` is the one until then, as `build_collator` makes it."""
    return replace(first, **_phase(objective, last=True)) if objective.has_phases else first


def _phase(objective: ObjectiveConfig, last: bool) -> dict[str, Any]:
    """Return the fields of a collator that may change at `objective.switch`."""
    causal = {"causal_fraction": 0.0}
    if isinstance(objective, MaskedLMConfig):
        final = objective.final_causal_fraction
        fraction = final if last and final is not None else objective.causal_fraction
        causal = {"causal_fraction": fraction, "all_causal_labels": objective.causal_labels == "all"}
    return {
        "scheme": (last and objective.final_masking) or objective.masking,
        "max_probability": objective.rates[last] if objective.mask_schedule == "step" else max(objective.rates),
        **causal,
    }


def mean_capacity(first: MaskedLMCollator, objective: ObjectiveConfig, seq_length: int) -> float:
    """Return the slots per row of `seq_length` tokens, averaged over the budget."""
    before, after = (one.capacity(seq_length) for one in (first, last_collator(first, objective)))
    return objective.switch * before + (1.0 - objective.switch) * after


def evaluation_collator(
    vocab_size: int,
    special_ids: tuple[int, ...],
    mask_id: int,
    pad_id: int | None = None,
    sep_id: int | None = None,
    objective: ObjectiveConfig = _MASKED_LM,
) -> MaskedLMCollator:
    """Build the collator of held-out evaluation: 15 % of every row, all [MASK], so that losses are comparable.

    Everything else is as `objective` has it, but no row is causal.
    """
    fixed = {"mlm_probability": 0.15, "final_mlm_probability": None, "min_mlm_probability": None}
    plain = {"masking": "all-mask", "positions": "fixed", "unit": "token"}
    every_row = {"causal_fraction": 0.0} if objective.has_causal_rows else {}
    chosen = objective.model_copy(update={**fixed, **plain, **every_row})
    return build_collator(chosen, vocab_size, special_ids, mask_id, pad_id, sep_id)
