"""Token ids of rows for fine-tuning, and batches of rows of similar length."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from cram_composer.evaluation.tasks.examples import Split

LENGTH_MULTIPLE = 8  # rows are padded to a multiple, which suits matrix kernels
_POOLED_BATCHES = 50  # batches whose rows are sorted together; the order of such pools stays random
_ROWS_PER_CALL = 8192  # rows tokenized per call: the tokenizer's lists take many times the memory of the ids


class EncodedRows(NamedTuple):
    """Unpadded rows of a split, one per example.

    Attributes:
        ids: int32, all rows concatenated; row r is ids[starts[r]:starts[r + 1]].
        types: uint8 token types of `ids`; None if the model has no token types.
        labels: int64 [N], or fp32 for a regression.
        groups: int64 [N], group number of each example.
        credits: fp32 [N].
    """

    ids: torch.Tensor
    types: torch.Tensor | None
    starts: torch.Tensor
    labels: torch.Tensor
    groups: torch.Tensor
    credits: torch.Tensor

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.labels)

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens of every row, int64 [N]."""
        return self.starts.diff()


def encode(split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int, token_types: bool) -> EncodedRows:
    """Encode every example; in pairs that are too long, the longer text is truncated."""
    examples = split.examples
    ids, types, lengths = [], [], []
    for start in range(0, len(examples), _ROWS_PER_CALL):
        texts = (example.texts for example in examples[start : start + _ROWS_PER_CALL])
        columns = [list(column) for column in zip(*texts, strict=True)]
        rows = tokenizer(*columns, truncation=True, max_length=max_length, return_token_type_ids=token_types)
        lengths += [len(row) for row in rows["input_ids"]]
        ids.append(torch.tensor(list(itertools.chain.from_iterable(rows["input_ids"])), dtype=torch.int32))
        if token_types:
            types.append(torch.tensor(list(itertools.chain.from_iterable(rows["token_type_ids"])), dtype=torch.uint8))
    groups: dict[object, int] = {}
    return EncodedRows(
        torch.cat(ids),
        torch.cat(types) if token_types else None,
        torch.tensor([0, *itertools.accumulate(lengths)]),
        torch.tensor([example.label for example in examples]),
        torch.tensor([groups.setdefault(example.group, len(groups)) for example in examples]),
        torch.tensor([example.credit for example in examples]),
    )


def training_batches(rows: EncodedRows, batch_size: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Return the row numbers of one epoch's batches: shuffled, with rows of similar length in a batch."""
    lengths, order = rows.lengths, torch.randperm(rows.size, generator=generator)
    batches: list[torch.Tensor] = []
    for pool in order.split(batch_size * _POOLED_BATCHES):
        batches += pool[lengths[pool].argsort(stable=True)].split(batch_size)
    return [batches[at] for at in torch.randperm(len(batches), generator=generator).tolist()]


def scoring_batches(rows: EncodedRows, batch_size: int) -> list[torch.Tensor]:
    """Return the row numbers of all batches, longest rows first, so that a lack of memory shows immediately."""
    return list(rows.lengths.argsort(descending=True, stable=True).split(batch_size))


def collate(rows: EncodedRows, batch: torch.Tensor, pad: int) -> dict[str, torch.Tensor]:
    """Pad the rows of a batch: input_ids, attention_mask, token_type_ids if any, int64 [B, L]; labels [B]."""
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


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Move the batch to `device`."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def epoch_batches(rows: EncodedRows, batch_size: int, count: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield the row numbers of the batches of `count` epochs, determined by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield from training_batches(rows, batch_size, generator)
