"""Rows of token ids for fine-tuning, and batches of rows of about the same length."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from cram_composer.evaluation.fine_tuning.examples import Split

LENGTH_MULTIPLE = 8  # rows are padded to one, which matrix kernels like
_POOLED_BATCHES = 50  # batches whose rows are sorted together: order stays random beyond them
_AT_A_TIME = 8192  # rows are tokenized at a time: the tokenizer's lists take many times the memory of the ids


class Encoded(NamedTuple):
    """Rows of a split, one for each candidate, without padding.

    `ids` int32 holds one row after another, row r from starts[r] to starts[r + 1]; `types`, where the model has token
    types, goes with it. `labels` [N] are int64, or fp32 of a regression; `groups` int64 [N] and `credits` fp32 [N] are
    the candidates'.
    """

    ids: torch.Tensor
    types: torch.Tensor | None
    starts: torch.Tensor
    labels: torch.Tensor
    groups: torch.Tensor
    credits: torch.Tensor

    @property
    def size(self) -> int:
        """Rows."""
        return len(self.labels)

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens of every row, int64 [N]."""
        return self.starts.diff()


def encode(split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int, token_types: bool) -> Encoded:
    """Encode every candidate; of pairs too long, the longer text is cut."""
    candidates = split.candidates
    ids, types, lengths = [], [], []
    for start in range(0, len(candidates), _AT_A_TIME):
        texts = (candidate.texts for candidate in candidates[start : start + _AT_A_TIME])
        columns = [list(column) for column in zip(*texts, strict=True)]
        rows = tokenizer(*columns, truncation=True, max_length=max_length, return_token_type_ids=token_types)
        lengths += [len(row) for row in rows["input_ids"]]
        ids.append(torch.tensor(list(itertools.chain.from_iterable(rows["input_ids"])), dtype=torch.int32))
        if token_types:
            types.append(torch.tensor(list(itertools.chain.from_iterable(rows["token_type_ids"])), dtype=torch.uint8))
    groups: dict[object, int] = {}
    return Encoded(
        torch.cat(ids),
        torch.cat(types) if token_types else None,
        torch.tensor([0, *itertools.accumulate(lengths)]),
        torch.tensor([candidate.label for candidate in candidates]),
        torch.tensor([groups.setdefault(candidate.group, len(groups)) for candidate in candidates]),
        torch.tensor([candidate.credit for candidate in candidates]),
    )


def training_batches(rows: Encoded, batch_size: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Row numbers of one epoch's batches: shuffled, rows of a batch of like length, every row once."""
    lengths, order = rows.lengths, torch.randperm(rows.size, generator=generator)
    batches: list[torch.Tensor] = []
    for pool in order.split(batch_size * _POOLED_BATCHES):
        batches += pool[lengths[pool].argsort(stable=True)].split(batch_size)
    return [batches[at] for at in torch.randperm(len(batches), generator=generator).tolist()]


def scoring_batches(rows: Encoded, batch_size: int) -> list[torch.Tensor]:
    """Row numbers of all rows, the longest first: what is too much for the memory is too much at once."""
    return list(rows.lengths.argsort(descending=True, stable=True).split(batch_size))


def collate(rows: Encoded, batch: torch.Tensor, pad: int) -> dict[str, torch.Tensor]:
    """The rows of a batch: input_ids, attention_mask and, where there are, token_type_ids int64 [B, L]; labels [B]."""
    starts, lengths = rows.starts[batch, None], rows.lengths[batch, None]
    at = torch.arange(-(-int(lengths.max()) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE)
    inside = at < lengths
    places = (starts + at).where(inside, 0)
    made = {
        "input_ids": rows.ids[places].long().where(inside, pad),
        "attention_mask": inside.long(),
        "labels": rows.labels[batch],
    }
    if rows.types is not None:
        made["token_type_ids"] = rows.types[places].long().where(inside, 0)
    return made


def moved(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """The batch on `device`."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def epochs(rows: Encoded, batch_size: int, count: int, seed: int) -> Iterator[torch.Tensor]:
    """Row numbers of the batches of `count` epochs, settled by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield from training_batches(rows, batch_size, generator)
