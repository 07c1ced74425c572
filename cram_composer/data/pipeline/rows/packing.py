"""Packing: token ids of documents become rows of one length, kept in a file until they are put in order.

Two ways with one interface: `Packer` concatenates and chops, `BestFitPacker` keeps documents whole and pads.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Tokens that BestFitPacker chooses among. Packing them takes about 40 bytes a token for a moment; with rows of 128
# tokens, more of them do not lower the share of padding by a thousandth.
_BUFFER_TOKENS = 1 << 20


class Packer:
    """Rows of one split. The documents' ids are concatenated and chopped (Geiping and Goldstein 2022, section 4.1).

    `counts` [vocab_size] is how often each id is in the rows; `rows` how many there are. What does not fill a row
    at the end stays out and is `dropped_tokens`.
    """

    padding_tokens = 0

    def __init__(self, path: Path, sequence_length: int, vocab_size: int, dtype: np.dtype) -> None:
        self.path = path
        self.counts = np.zeros(vocab_size, np.int64)
        self.rows = 0
        self._sequence_length = sequence_length
        self._dtype = dtype
        self._rest = np.zeros(0, dtype)
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close()

    @property
    def dropped_tokens(self) -> int:
        """Tokens at the end that do not fill a row."""
        return len(self._rest)

    def add(self, ids: NDArray) -> None:
        """Append token ids [tokens]."""
        tokens = np.concatenate([self._rest, np.asarray(ids, self._dtype)])
        rows = len(tokens) // self._sequence_length
        full: NDArray = tokens[: rows * self._sequence_length]
        full.tofile(self._file)
        self.counts += np.bincount(full, minlength=len(self.counts))
        self.rows += rows
        self._rest = tokens[len(full) :].copy()

    def add_documents(self, ids: list[NDArray], last: list[bool], sep_id: int) -> None:
        """Append pieces of documents in order, `sep_id` after each piece that is the `last` of its document."""
        self.add(_joined(ids, last, sep_id, self._dtype))

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


class BestFitPacker:
    """Rows of one split, documents put whole where they fit best (Ding et al. 2024, arXiv 2404.10830).

    A document that is longer than a row is cut into full rows and a rest, which is packed like a document. Of about a
    million tokens at a time, the longest go first, each into the row with the least room that is enough for it; within
    a row they stand in the order they came in. What is left of a row is `pad_id`.

    `counts` [vocab_size] leaves padding out, `padding_tokens` is how much of it is in the `rows`; no token is dropped.
    The same documents give the same rows.
    """

    dropped_tokens = 0

    def __init__(self, path: Path, sequence_length: int, vocab_size: int, dtype: np.dtype, pad_id: int) -> None:
        self.path = path
        self.counts = np.zeros(vocab_size, np.int64)
        self.rows = 0
        self.padding_tokens = 0
        self._sequence_length = sequence_length
        self._dtype = dtype
        self._pad_id = pad_id
        self._open = np.zeros(0, dtype)  # what came of a document whose end did not; shorter than a row
        self._tokens: list[NDArray] = []  # of whole documents, and of full rows of longer ones
        self._lengths: list[NDArray] = []  # of each of them
        self._waiting = 0  # tokens in self._tokens
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close()

    def add_documents(self, ids: list[NDArray], last: list[bool], sep_id: int) -> None:
        """Append pieces of documents in order, `sep_id` after each piece that is the `last` of its document."""
        tokens = np.concatenate([self._open, _joined(ids, last, sep_id, self._dtype)])
        sizes = np.array([len(piece) for piece in ids], np.int64) + np.array(last, np.int64)
        ends = (len(self._open) + np.cumsum(sizes))[np.array(last, bool)]
        whole = int(ends[-1]) if len(ends) else 0
        # Full rows of the unfinished document are cut off at once, so that no document is held whole.
        used = whole + (len(tokens) - whole) // self._sequence_length * self._sequence_length
        self._hold(tokens[:used], np.diff(ends, prepend=0, append=used))
        self._open = tokens[used:].copy()
        if self._waiting >= _BUFFER_TOKENS:
            self._pack()

    def close(self) -> None:
        """Finish the file."""
        self._hold(self._open, np.array([len(self._open)]))
        self._pack()
        self._file.close()

    def _hold(self, tokens: NDArray, lengths: NDArray) -> None:
        self._tokens.append(tokens)
        self._lengths.append(lengths[lengths > 0])
        self._waiting += len(tokens)

    def _pack(self) -> None:
        """Write what is held."""
        tokens = np.concatenate(self._tokens)
        lengths = _cut(np.concatenate(self._lengths), self._sequence_length)
        self._tokens, self._lengths, self._waiting = [], [], 0
        row_of = best_fit(lengths, self._sequence_length)
        filled = np.bincount(row_of, lengths).astype(np.int64)  # tokens in each row

        # Documents by row, and within a row as they came: both the tokens' places there and here follow from it.
        order = np.argsort(row_of, kind="stable")
        starts = np.cumsum(lengths) - lengths
        lengths_there = lengths[order]
        before = np.cumsum(lengths_there) - lengths_there
        padding = self._sequence_length - filled
        there = before + (np.cumsum(padding) - padding)[row_of[order]]
        position = np.arange(lengths_there.sum())
        rows = np.full(len(filled) * self._sequence_length, self._pad_id, self._dtype)
        rows[position + np.repeat(there - before, lengths_there)] = tokens[
            position + np.repeat(starts[order] - before, lengths_there)
        ]
        rows.tofile(self._file)
        self.counts += np.bincount(tokens, minlength=len(self.counts))
        self.rows += len(filled)
        self.padding_tokens += len(rows) - len(tokens)


def best_fit(lengths: NDArray, capacity: int) -> NDArray:
    """Best-fit decreasing: the row, int64 [N], that each of N items of `lengths` (1 to `capacity`) goes into.

    An item goes into the row with the least room that is enough; of several such rows, into the one used last.
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
    """Number of the document within its row that each token of `rows` [B, L] is of: int64 [B, L], -1 at padding.

    [SEP] belongs to the document it ends. `pad_id` None: the rows hold no padding.
    """
    is_end = rows == sep_id
    numbers = np.cumsum(is_end, axis=1, dtype=np.int64) - is_end
    if pad_id is not None:
        numbers[rows == pad_id] = -1
    return numbers


def _joined(ids: list[NDArray], last: list[bool], sep_id: int, dtype: np.dtype) -> NDArray:
    end, nothing = np.array([sep_id], dtype), np.zeros(0, dtype)
    parts = [part for piece, ends in zip(ids, last, strict=True) for part in (piece, end if ends else nothing)]
    return np.concatenate([nothing, *parts]).astype(dtype, copy=False)


def _cut(lengths: NDArray, capacity: int) -> NDArray:
    """Lengths of documents -> of what they are cut into: as many of `capacity` as there are in each, then its rest."""
    pieces = -(-lengths // capacity)
    cut = np.full(pieces.sum(), capacity, np.int64)
    cut[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * capacity
    return cut


def unigram_nats(train_counts: NDArray, validation_counts: NDArray, special_ids: list[int]) -> float:
    """Cross-entropy (nats per token) on validation counts of the train counts' add-one-smoothed unigram distribution.

    Both count arrays are [vocab_size]; special tokens are left out of both. What a model must beat to have learnt more
    than word frequencies.
    """
    ordinary = np.ones(len(train_counts), bool)
    ordinary[special_ids] = False
    smoothed = train_counts[ordinary] + 1.0
    held_out = validation_counts[ordinary]
    log_probability = np.log(smoothed) - np.log(smoothed.sum())
    return float(-(held_out * log_probability).sum() / held_out.sum())
