"""Rows of token ids for fine-tuning, and batches of rows of about the same length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from cram_composer.evaluation.examples import Split

_MULTIPLE = 8  # rows are padded to one, which matrix kernels like
_POOLED_BATCHES = 50  # batches whose rows are sorted together: order stays random beyond them


class Encoded(NamedTuple):
    """Rows of a split: token ids without padding, token types where the model has them, labels [N]."""

    input_ids: list[list[int]]
    token_type_ids: list[list[int]] | None
    labels: torch.Tensor


def encode(split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int, token_types: bool) -> Encoded:
    """Encode every row; of pairs too long, the longer text is cut."""
    columns = [list(column) for column in zip(*split.texts, strict=True)]
    rows = tokenizer(*columns, truncation=True, max_length=max_length, return_token_type_ids=token_types)
    kind = torch.float32 if isinstance(split.labels[0], float) else torch.int64
    types = rows["token_type_ids"] if token_types else None
    return Encoded(rows["input_ids"], types, torch.tensor(split.labels, dtype=kind))


def training_batches(rows: Encoded, batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """Row numbers of one epoch's batches: shuffled, rows of a batch of like length, every row once."""
    order = torch.randperm(len(rows.input_ids), generator=generator).tolist()
    pool = batch_size * _POOLED_BATCHES
    batches = []
    for start in range(0, len(order), pool):
        pooled = sorted(order[start : start + pool], key=lambda row: len(rows.input_ids[row]))
        batches += [pooled[at : at + batch_size] for at in range(0, len(pooled), batch_size)]
    return [batches[at] for at in torch.randperm(len(batches), generator=generator).tolist()]


def scoring_batches(rows: Encoded, batch_size: int) -> list[list[int]]:
    """Row numbers of all rows, the longest first: what is too much for the memory is too much at once."""
    order = sorted(range(len(rows.input_ids)), key=lambda row: -len(rows.input_ids[row]))
    return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]


def collate(rows: Encoded, batch: list[int], pad: int) -> dict[str, torch.Tensor]:
    """The rows of a batch: input_ids, attention_mask and, where there are, token_type_ids int64 [B, L]; labels [B]."""
    longest = max(len(rows.input_ids[row]) for row in batch)
    length = -(-longest // _MULTIPLE) * _MULTIPLE
    made = {
        "input_ids": torch.full((len(batch), length), pad),
        "attention_mask": torch.zeros(len(batch), length, dtype=torch.int64),
        "labels": rows.labels[batch],
    }
    if rows.token_type_ids is not None:
        made["token_type_ids"] = torch.zeros(len(batch), length, dtype=torch.int64)
    for at, row in enumerate(batch):
        count = len(rows.input_ids[row])
        made["input_ids"][at, :count] = torch.tensor(rows.input_ids[row])
        made["attention_mask"][at, :count] = 1
        if rows.token_type_ids is not None:
            made["token_type_ids"][at, :count] = torch.tensor(rows.token_type_ids[row])
    return made


def moved(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """The batch on `device`."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def epochs(rows: Encoded, batch_size: int, count: int, seed: int) -> Iterator[list[int]]:
    """Row numbers of the batches of `count` epochs, settled by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield from training_batches(rows, batch_size, generator)
