"""Token ids of rows for fine-tuning, and batches of rows of similar length."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from transformers import PreTrainedTokenizerBase

from cram_composer.errors import CramError
from cram_composer.evaluation.tasks.examples import Split

LENGTH_MULTIPLE = 8  # rows are padded to a multiple, which suits matrix kernels
_POOLED_BATCHES = 50  # batches whose rows are sorted together; the order of such pools stays random
_ROWS_PER_CALL = 8192  # rows tokenized per call: the tokenizer's lists take many times the memory of the ids


class EncodedRows(NamedTuple):
    """Unpadded rows of a split, one per example, or two where the texts of a pair are embedded separately.

    Attributes:
        ids: int32, all rows concatenated; row r is ids[starts[r]:starts[r + 1]].
        types: uint8 token types of `ids`; None if the model has no token types.
        sides: uint8 text of a pair that an id belongs to, 1 or 2, and 0 for special tokens; None if nothing reads it.
        labels: int64 [N], or fp32 for a regression; of a task that tags words, int64 [W], all words concatenated.
        groups: int64 [N], group number of each example; of embeddings [N, 2], numbers of the texts.
        credits: fp32 [N].
        words: int64, index in `labels` of the word that an id begins, or -1; None if words have no labels.
        sentences: int64 [N + 1]; row r has the words sentences[r] to sentences[r + 1].
        texts: rows of each example.
    """

    ids: torch.Tensor
    types: torch.Tensor | None
    starts: torch.Tensor
    labels: torch.Tensor
    groups: torch.Tensor
    credits: torch.Tensor
    words: torch.Tensor | None = None
    sentences: torch.Tensor | None = None
    texts: int = 1
    sides: torch.Tensor | None = None

    @property
    def size(self) -> int:
        """Number of examples."""
        return (len(self.starts) - 1) // self.texts

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens of the longest row of every example, int64 [N]."""
        return self.starts.diff().view(-1, self.texts).amax(dim=1)


def encode(
    split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int, token_types: bool, sides: bool = False
) -> EncodedRows:
    """Encode every example; in pairs that are too long, the longer text is truncated.

    Raises:
        CramError: `sides` with a tokenizer that does not tell which text a piece belongs to.
    """
    if sides and not tokenizer.is_fast:
        raise CramError("pooling=pair needs a fast tokenizer (tokenizer.json), which the model does not have")
    examples = split.examples
    pieces = _tokenize([example.texts for example in examples], tokenizer, max_length, token_types, sides=sides)
    groups: dict[object, int] = {}
    return EncodedRows(
        pieces.ids,
        pieces.types,
        pieces.starts,
        torch.tensor([example.label for example in examples]),
        torch.tensor([groups.setdefault(example.group, len(groups)) for example in examples]),
        torch.tensor([example.credit for example in examples]),
        sides=pieces.sides,
    )


def encode_words(split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int, token_types: bool) -> EncodedRows:
    """Encode sentences whose words have labels; words are joined with spaces, and the first piece stands for its word.

    A word that is truncated, or that no piece begins, is in `labels` but not in `words`.

    Raises:
        CramError: the tokenizer does not tell which characters a piece covers.
    """
    if not tokenizer.is_fast:
        raise CramError("words with labels need a fast tokenizer (tokenizer.json), which the model does not have")
    examples = split.examples
    texts = [(" ".join(example.texts),) for example in examples]
    pieces = _tokenize(texts, tokenizer, max_length, token_types, offsets=True)
    words: list[int] = []
    sentences = [0]
    for example, spans in zip(examples, pieces.spans, strict=True):
        ends = list(itertools.accumulate(len(word) + 1 for word in example.texts))  # with the space after a word
        last = -1
        for start, end in spans:
            # The last character tells the word: a piece may begin with the space before it, or be only that space.
            word = bisect.bisect_right(ends, end - 1)
            begins = start < end < ends[word] and word > last
            words.append(sentences[-1] + word if begins else -1)
            last = word if begins else last
        sentences.append(sentences[-1] + len(ends))
    labels = [label for example in examples for label in cast(tuple[int, ...], example.label)]
    none = torch.zeros(len(examples))
    return EncodedRows(
        pieces.ids, pieces.types, pieces.starts, torch.tensor(labels), none.long(), none,
        torch.tensor(words), torch.tensor(sentences),
    )  # fmt: skip


def encode_texts(split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int, token_types: bool) -> EncodedRows:
    """Encode both texts of every pair, each in a row of its own."""
    examples = split.examples
    texts = [text for example in examples for text in example.texts]
    pieces = _tokenize([(text,) for text in texts], tokenizer, max_length, token_types)
    numbers: dict[str, int] = {}
    groups = torch.tensor([numbers.setdefault(text, len(numbers)) for text in texts]).view(-1, 2)
    labels = torch.tensor([example.label for example in examples])
    none = torch.zeros(len(examples))
    return EncodedRows(pieces.ids, pieces.types, pieces.starts, labels, groups, none, texts=2)


class _Pieces(NamedTuple):
    ids: torch.Tensor
    types: torch.Tensor | None
    starts: torch.Tensor
    spans: list[list[tuple[int, int]]]  # characters of every piece, row by row
    sides: torch.Tensor | None


def _tokenize(
    texts: Sequence[tuple[str, ...]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    token_types: bool,
    offsets: bool = False,
    sides: bool = False,
) -> _Pieces:
    ids, types, lengths, numbers = [], [], [], []
    spans: list[list[tuple[int, int]]] = []
    for start in range(0, len(texts), _ROWS_PER_CALL):
        columns = [list(column) for column in zip(*texts[start : start + _ROWS_PER_CALL], strict=True)]
        rows = tokenizer(
            *columns,
            truncation=True,
            max_length=max_length,
            return_token_type_ids=token_types,
            return_offsets_mapping=offsets,
        )
        lengths += [len(row) for row in rows["input_ids"]]
        ids.append(torch.tensor(list(itertools.chain.from_iterable(rows["input_ids"])), dtype=torch.int32))
        if token_types:
            types.append(torch.tensor(list(itertools.chain.from_iterable(rows["token_type_ids"])), dtype=torch.uint8))
        spans += rows["offset_mapping"] if offsets else []
        if sides:
            flat = itertools.chain.from_iterable(rows.sequence_ids(row) for row in range(len(rows["input_ids"])))
            numbers.append(torch.tensor([0 if text is None else text + 1 for text in flat], dtype=torch.uint8))
    starts = torch.tensor([0, *itertools.accumulate(lengths)])
    all_types = torch.cat(types) if token_types else None
    return _Pieces(torch.cat(ids), all_types, starts, spans, torch.cat(numbers) if sides else None)


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
    """Pad the rows of a batch: input_ids, attention_mask, token_type_ids and sides if any, int64 [B, L], and labels.

    Labels are [B]; for words [B, L], with -100 at every other token; for embeddings the numbers of the texts, [B, 2],
    and the two rows of a pair follow each other.
    """
    places, inside = _places(rows, batch)
    made = {
        "input_ids": rows.ids[places].long().where(inside, pad),
        "attention_mask": inside.long(),
        "labels": _labels(rows, batch),
    }
    for name, values in (("token_type_ids", rows.types), ("sides", rows.sides)):
        if values is not None:
            made[name] = values[places].long().where(inside, 0)
    return made


def words_at(rows: EncodedRows, batch: torch.Tensor) -> torch.Tensor:
    """Return for every token of a collated batch the word that it begins, or -1; int64 [B, L]."""
    assert rows.words is not None
    places, inside = _places(rows, batch)
    return rows.words[places].where(inside, -1)


def _labels(rows: EncodedRows, batch: torch.Tensor) -> torch.Tensor:
    if rows.texts > 1:
        return rows.groups[batch]
    if rows.words is None:
        return rows.labels[batch]
    words = words_at(rows, batch)
    return rows.labels[words].where(words >= 0, -100)


def _places(rows: EncodedRows, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the places in `rows.ids` of a padded batch, int64 [B, L], and which of them are inside a row."""
    numbers = (batch[:, None] * rows.texts + torch.arange(rows.texts)).flatten()
    starts, lengths = rows.starts[numbers, None], rows.starts.diff()[numbers, None]
    at = torch.arange(-(-int(lengths.max()) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE)
    inside = at < lengths
    return (starts + at).where(inside, 0), inside


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Move the batch to `device`."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def epoch_batches(rows: EncodedRows, batch_size: int, count: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield the row numbers of the batches of `count` epochs, determined by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield from training_batches(rows, batch_size, generator)
