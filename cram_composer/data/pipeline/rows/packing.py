"""Packing: token ids of documents become rows of equal length in a file.

`ChopPacker` concatenates and chops, `BestFitPacker` keeps documents whole and pads; both have the same interface.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Tokens that BestFitPacker packs together, which temporarily takes about 40 bytes per token. At 128 tokens per row, a
# larger buffer lowers the share of padding by less than 0.001.
_BUFFER_TOKENS = 1 << 20


class RowWriter:
    """Writes rows to a file and counts their tokens.

    Args:
        path: of the file.
        sequence_length: tokens in a row.
        vocab_size: number of ids.
        dtype: of the ids in the file.
        cls_id: put before the tokens of every row; None for nothing.

    Attributes:
        capacity: tokens in a row besides `cls_id`.
        counts: [vocab_size], occurrences of each id.
        rows: number of rows.
    """

    def __init__(
        self, path: Path, sequence_length: int, vocab_size: int, dtype: np.dtype, cls_id: int | None = None
    ) -> None:
        self.dtype = dtype
        self.capacity = sequence_length - (cls_id is not None)
        self.counts = np.zeros(vocab_size, np.int64)
        self.rows = 0
        self._cls_id = cls_id
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close()

    def write(self, tokens: NDArray) -> None:
        """Write token ids [rows * capacity]."""
        rows = tokens.reshape(-1, self.capacity)
        if self._cls_id is not None:
            rows = np.insert(rows, 0, self._cls_id, axis=1)
        rows.tofile(self._file)
        self.counts += np.bincount(rows.ravel(), minlength=len(self.counts))
        self.rows += len(rows)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class ChopPacker:
    """Concatenates the ids of documents and chops them into rows (Geiping and Goldstein 2022, section 4.1)."""

    padding_tokens = 0

    def __init__(self, writer: RowWriter) -> None:
        self.writer = writer
        self._rest = np.zeros(0, writer.dtype)

    @property
    def dropped_tokens(self) -> int:
        """Tokens at the end that do not fill a row."""
        return len(self._rest)

    def add(self, ids: NDArray) -> None:
        """Append token ids [tokens]."""
        tokens = np.concatenate([self._rest, np.asarray(ids, self.writer.dtype)])
        full = len(tokens) // self.writer.capacity * self.writer.capacity
        self.writer.write(tokens[:full])
        self._rest = tokens[full:].copy()

    def add_documents(self, ids: list[NDArray], last: list[bool], sep_id: int) -> None:
        """Append pieces of documents in order, with `sep_id` after the last piece of each document."""
        self.add(_join_documents(ids, last, sep_id, self.writer.dtype))

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


class BestFitPacker:
    """Packs whole documents into rows by best fit (Ding et al. 2024, arXiv 2404.10830) and fills rows with `pad_id`.

    A document longer than a row is cut into full rows and a rest, which is packed like a document. Of about a million
    tokens at a time, the longest documents go first, each into the fullest row with enough room; within a row they keep
    their order. The same documents give the same rows, and no token is dropped.

    Attributes:
        padding_tokens: number of [PAD] in the rows; `writer.counts` does not include them.
    """

    dropped_tokens = 0

    def __init__(self, writer: RowWriter, pad_id: int) -> None:
        self.writer = writer
        self.padding_tokens = 0
        self._pad_id = pad_id
        self._unfinished = np.zeros(0, writer.dtype)  # unfinished document; shorter than a row
        self._tokens: list[NDArray] = []  # of whole documents and full rows of longer ones
        self._lengths: list[NDArray] = []  # of each document in self._tokens
        self._buffered_tokens = 0  # tokens in self._tokens

    def add_documents(self, ids: list[NDArray], last: list[bool], sep_id: int) -> None:
        """Append pieces of documents in order, with `sep_id` after the last piece of each document."""
        tokens = np.concatenate([self._unfinished, _join_documents(ids, last, sep_id, self.writer.dtype)])
        sizes = np.array([len(piece) for piece in ids], np.int64) + np.array(last, np.int64)
        ends = (len(self._unfinished) + np.cumsum(sizes))[np.array(last, bool)]
        finished = int(ends[-1]) if len(ends) else 0
        # Full rows of the unfinished document are taken out at once, so that no document is buffered whole.
        used = finished + (len(tokens) - finished) // self.writer.capacity * self.writer.capacity
        self._buffer(tokens[:used], np.diff(ends, prepend=0, append=used))
        self._unfinished = tokens[used:].copy()
        if self._buffered_tokens >= _BUFFER_TOKENS:
            self._pack()

    def close(self) -> None:
        """Pack the remaining tokens and close the file."""
        self._buffer(self._unfinished, np.array([len(self._unfinished)]))
        self._pack()
        self.writer.close()

    def _buffer(self, tokens: NDArray, lengths: NDArray) -> None:
        self._tokens.append(tokens)
        self._lengths.append(lengths[lengths > 0])
        self._buffered_tokens += len(tokens)

    def _pack(self) -> None:
        """Pack and write the buffered tokens."""
        tokens = np.concatenate(self._tokens)
        capacity = self.writer.capacity
        lengths = _cut_to_rows(np.concatenate(self._lengths), capacity)
        self._tokens, self._lengths, self._buffered_tokens = [], [], 0
        row_of = best_fit(lengths, capacity)
        filled = np.bincount(row_of, lengths).astype(np.int64)  # tokens in each row

        # Documents by row, in their order within a row; source and target positions of the tokens follow from it.
        order = np.argsort(row_of, kind="stable")
        starts = np.cumsum(lengths) - lengths
        ordered_lengths = lengths[order]
        before = np.cumsum(ordered_lengths) - ordered_lengths
        padding = capacity - filled
        target = before + (np.cumsum(padding) - padding)[row_of[order]]
        position = np.arange(ordered_lengths.sum())
        rows = np.full(len(filled) * capacity, self._pad_id, self.writer.dtype)
        rows[position + np.repeat(target - before, ordered_lengths)] = tokens[
            position + np.repeat(starts[order] - before, ordered_lengths)
        ]
        self.writer.write(rows)
        self.writer.counts[self._pad_id] -= len(rows) - len(tokens)
        self.padding_tokens += len(rows) - len(tokens)


def best_fit(lengths: NDArray, capacity: int) -> NDArray:
    """Assign items to rows by best-fit decreasing: the row, int64 [N], of N items of `lengths` (1 to `capacity`).

    An item goes into the fullest row with enough room; of several such rows, into the one used last.
    """
    rows_with: list[list[int]] = [[] for _ in range(capacity + 1)]  # by room
    rooms = 0  # bit r is set if a row has room r
    count = 0
    order = np.argsort(-lengths, kind="stable")
    chosen: list[int] = []
    for length in lengths[order].tolist():
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            row = rows_with[room].pop()
            if not rows_with[room]:
                rooms ^= 1 << room
        else:
            room, row, count = capacity, count, count + 1
        chosen.append(row)
        room -= length
        if room:
            rows_with[room].append(row)
            rooms |= 1 << room
    rows = np.empty(len(order), np.int64)
    rows[order] = chosen
    return rows


def document_ids(rows: NDArray, sep_id: int, pad_id: int | None) -> NDArray:
    """Return the number of each token's document within its row, for `rows` [B, L]: int64 [B, L], -1 at padding.

    [SEP] belongs to the document it ends. `pad_id` is None if the rows have no padding.
    """
    is_end = rows == sep_id
    numbers = np.cumsum(is_end, axis=1, dtype=np.int64) - is_end
    if pad_id is not None:
        numbers[rows == pad_id] = -1
    return numbers


def _join_documents(ids: list[NDArray], last: list[bool], sep_id: int, dtype: np.dtype) -> NDArray:
    end, nothing = np.array([sep_id], dtype), np.zeros(0, dtype)
    parts = [part for piece, ends in zip(ids, last, strict=True) for part in (piece, end if ends else nothing)]
    return np.concatenate([nothing, *parts]).astype(dtype, copy=False)


def separate_sentences(ids: NDArray, end_ids: NDArray, sep_id: int) -> NDArray:
    """Insert `sep_id` after every sentence of a piece of a document but the last; `end_ids` end a sentence."""
    is_end = np.isin(ids, end_ids)
    ends = np.flatnonzero(is_end[:-1] & ~is_end[1:]) + 1
    return np.insert(ids, ends, sep_id)


def _cut_to_rows(lengths: NDArray, capacity: int) -> NDArray:
    """Return the lengths after cutting documents into pieces of `capacity` and a rest."""
    pieces = -(-lengths // capacity)
    cut = np.full(pieces.sum(), capacity, np.int64)
    cut[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * capacity
    return cut


def unigram_nats(train_counts: NDArray, validation_counts: NDArray, special_ids: list[int]) -> float:
    """Return the cross-entropy (nats per token) of the add-one-smoothed unigram distribution of the train counts.

    It is measured on the validation counts; both are [vocab_size], and special tokens are left out. A model must beat
    it to have learnt more than word frequencies.
    """
    ordinary = np.ones(len(train_counts), bool)
    ordinary[special_ids] = False
    smoothed = train_counts[ordinary] + 1.0
    held_out = validation_counts[ordinary]
    log_probability = np.log(smoothed) - np.log(smoothed.sum())
    return float(-(held_out * log_probability).sum() / held_out.sum())
