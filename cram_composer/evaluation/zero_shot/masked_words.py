"""Bits per character of masked words: a measure of how well a model predicts text, comparable across tokenizers.

Text is split at white space into words, and words into windows by their characters; a seed chooses the words to mask.
This is independent of tokenizers: all models predict the same words from the same windows. A word is hidden by as many
[MASK] as it has pieces, all at once, and costs the sum of the costs of its pieces; the sum over all masked words in
bits is divided by their characters, which are the same for all models.

Tokenizers that discard information are charged for it:

- The text under an [UNK] piece costs `unknown_bits_per_byte` for every byte of its UTF-8, on top of predicting [UNK].
  At 8 bits, this is the cost of spelling it out without any model. A character that no piece covers costs the same.
- A piece that also covers part of a neighbouring word is masked and charged whole.
- A window with more pieces than the model reads is halved between words until every part fits, so its words are
  predicted from less context; no word is cut. A single word that is too long is charged as unknown.

Not charged, but noted beside the numbers: a model whose tokenizer lower-cases or drops accents predicts less. The
number of pieces of a hidden word is revealed, and pieces of one word are predicted independently.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from cram_composer.config.schema.data_build import FilesConfig
from cram_composer.config.schema.evaluation import MaskedWordsConfig
from cram_composer.data.pipeline.sources import open_sources
from cram_composer.errors import CramError
from cram_composer.evaluation.zero_shot.masked_scoring import MaskedRow, MaskedScorer

_INTERVAL = (2.5, 97.5)  # percentiles of the bootstrap


class Window(NamedTuple):
    """Words that are read together, and the indices of the masked ones (at least one)."""

    words: tuple[str, ...]
    masked: tuple[int, ...]

    @property
    def characters(self) -> int:
        """Characters of the masked words."""
        return sum(len(self.words[number]) for number in self.masked)


@dataclass(frozen=True)
class TextSample:
    """The windows of a text."""

    name: str
    windows: list[Window]

    @property
    def digest(self) -> str:
        """Hash of the words and the choice of masked ones."""
        return hashlib.sha256(json.dumps(self.windows).encode()).hexdigest()[:16]


class WindowCost(NamedTuple):
    """The rows to predict for a window's masked words, and the text that is charged regardless of the model."""

    rows: list[MaskedRow]
    cut: bool  # the window was read in parts
    unknown_characters: int
    unknown_bytes: int


def read_parts(protocol: MaskedWordsConfig, data: Path) -> list[TextSample]:
    """Read about `protocol.characters` of the text of a file or a folder of files, as a list of one sample.

    Raises:
        CramError: a missing or unreadable file, or no word to mask.
    """
    text = FilesConfig(paths=[str(data)], text_column=protocol.text_column, text_suffixes=protocol.text_suffixes)
    (source,) = open_sources([text])
    chosen = random.Random(protocol.seed)  # noqa: S311 - reproducible on purpose
    windows = []
    for piece in source.sample(protocol.characters):
        # One form of accents for all tokenizers, whether they compose them or not.
        for words in cut_windows(unicodedata.normalize("NFC", piece.text), protocol.window_characters):
            masked = tuple(number for number in range(len(words)) if chosen.random() < protocol.mlm_probability)
            if masked:
                windows.append(Window(words, masked))
    if not windows:
        raise CramError(f"--data {data}: no word to mask at mlm_probability {protocol.mlm_probability}; use more text")
    return [TextSample(data.name, windows)]


def cut_windows(text: str, characters: int) -> Iterator[tuple[str, ...]]:
    """Yield runs of whole words that fit in `characters` with a space between words, but at least one word."""
    words: list[str] = []
    size = 0
    for word in text.split():
        if words and size + len(word) > characters:
            yield tuple(words)
            words, size = [], 0
        words.append(word)
        size += len(word) + 1
    if words:
        yield tuple(words)


def score_part(text: TextSample, scorer: MaskedScorer, protocol: MaskedWordsConfig) -> dict[str, Any]:
    """Compute bits per character of the masked words.

    Returns:
        JSON: bits_per_character with low and high (95 % of bootstrap samples of windows), nats_per_piece, unknown_share
        (of the characters), the numbers of characters, words, pieces and windows, cut_windows, notes.
    """
    costs = [window_cost(window, scorer.tokenizer, scorer.max_length) for window in text.windows]
    scores = iter(scorer([row for cost in costs for row in cost.rows]))
    nats = [-math.fsum(math.fsum(next(scores)) for _ in cost.rows) for cost in costs]
    pieces = sum(len(row.positions) for cost in costs for row in cost.rows)
    unknown = np.array([cost.unknown_bytes for cost in costs]) * protocol.unknown_bits_per_byte
    bits = np.array(nats) / math.log(2.0) + unknown
    characters = np.array([window.characters for window in text.windows])
    low, high = _interval(bits, characters, protocol)
    return {
        "bits_per_character": float(bits.sum() / characters.sum()),
        "low": low,
        "high": high,
        "nats_per_piece": math.fsum(nats) / pieces if pieces else None,
        "unknown_share": sum(cost.unknown_characters for cost in costs) / int(characters.sum()),
        "characters": int(characters.sum()),
        "words": sum(len(window.masked) for window in text.windows),
        "pieces": pieces,
        "windows": len(text.windows),
        "cut_windows": sum(cost.cut for cost in costs),
        "notes": _tokenizer_losses(scorer.tokenizer),
    }


def _interval(bits: np.ndarray, characters: np.ndarray, protocol: MaskedWordsConfig) -> tuple[float, float]:
    """Return percentiles of the ratio of sums over windows drawn with replacement."""
    count = len(bits)
    drawn = np.random.default_rng(protocol.seed).multinomial(count, np.full(count, 1.0 / count), protocol.bootstrap)
    low, high = np.percentile((drawn @ bits) / (drawn @ characters), _INTERVAL)
    return float(low), float(high)


def window_cost(window: Window, tokenizer: PreTrainedTokenizerBase, max_length: int) -> WindowCost:
    """Return the rows that hide a window's masked words, one unless it exceeds `max_length`, and its unknown text.

    Parts without a masked word make no row.
    """
    masked = [number in window.masked for number in range(len(window.words))]
    rows: list[MaskedRow] = []
    characters = size = 0
    cut = False
    todo = [(0, len(window.words))]
    while todo:
        first, end = todo.pop()
        words, hidden = window.words[first:end], masked[first:end]
        if not any(hidden):
            continue
        encoded = tokenizer(
            " ".join(words), return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False
        )
        ids = encoded["input_ids"]
        if len(ids) > max_length and len(words) > 1:
            middle = (first + end) // 2
            todo += [(middle, end), (first, middle)]  # the first half is processed first
            cut = True
            continue
        if len(ids) > max_length:
            characters += len(words[0])
            size += _utf8_size(words[0])
            continue
        positions, unknown = _hidden_positions(words, hidden, encoded, tokenizer.unk_token_id)
        characters += len(unknown)
        size += _utf8_size(unknown)
        if positions:
            shown = list(ids)
            for position in positions:
                shown[position] = tokenizer.mask_token_id
            rows.append(MaskedRow(tuple(shown), tuple(positions), tuple(ids[position] for position in positions)))
    return WindowCost(rows, cut, characters, size)


def _hidden_positions(
    words: Sequence[str], hidden: Sequence[bool], encoded: Any, unk: int | None
) -> tuple[list[int], str]:
    """Return the positions of the pieces of hidden words, and these words' characters under [UNK] or under no piece.

    White space belongs to the following word.
    """
    text, is_hidden = "", []
    for word, hide in zip(words, hidden, strict=True):
        spaced = f" {word}" if text else word
        text += spaced
        is_hidden += [hide] * len(spaced)
    known: set[int] = set()  # characters under a piece other than [UNK]
    positions = []
    for position, (start, end) in enumerate(encoded["offset_mapping"]):
        if encoded["special_tokens_mask"][position] or not any(is_hidden[start:end]):
            continue
        positions.append(position)
        if encoded["input_ids"][position] != unk:
            known.update(range(start, end))
    unknown = (at for at, hide in enumerate(is_hidden) if hide and at not in known and not text[at].isspace())
    return positions, "".join(text[at] for at in unknown)


def _utf8_size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _tokenizer_losses(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """List the features of a text that the tokenizer drops, which its models need not predict."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    if normalizer is None:
        return []
    checks = {"lower-cases": ("A", "A"), "drops accents": ("\u00e9", "\u00e9")}
    lost = [
        what
        for what, (given, kept) in checks.items()
        if kept not in unicodedata.normalize("NFC", normalizer.normalize_str(given))
    ]
    return [f"its tokenizer {' and '.join(lost)}, so its model predicts less than one that keeps them"] if lost else []


def summarize(protocol: MaskedWordsConfig, scored: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the fields of a model's row: the result of `score_part` for the text, and the protocol's charge."""
    found = next(iter(scored.values()), None)
    return {"text": found, "unknown_bits_per_byte": protocol.unknown_bits_per_byte}


def columns(row: dict[str, Any]) -> dict[str, str]:
    """Return a model's cells on the console by header."""
    found = row["text"]
    if found is None:
        return {"bits/character": "-"}
    nats = found["nats_per_piece"]
    return {
        "bits/character": f"{found['bits_per_character']:.4f}",
        "95 % interval": f"{found['low']:.4f} to {found['high']:.4f}",
        "nats/piece": "-" if nats is None else f"{nats:.3f}",
        "pieces": f"{found['pieces']:,}",
        "unknown": f"{100.0 * found['unknown_share']:.2f} %",
    }


def legend(protocol: MaskedWordsConfig, parts: Sequence[TextSample]) -> str:
    """Return the line below the table that explains its numbers."""
    (text,) = parts
    words = sum(len(window.masked) for window in text.windows)
    characters = sum(window.characters for window in text.windows)
    return (
        f"{words:,} masked words, {characters:,} characters, of {len(text.windows):,} windows of {text.name}, the same "
        f"for all models; unknown text costs {protocol.unknown_bits_per_byte:g} bits per byte"
    )


def notes(row: dict[str, Any]) -> list[str]:
    """Return remarks on a model's row."""
    found = row["text"]
    if found is None:
        return []
    cut = found["cut_windows"]
    return [
        *found["notes"],
        *[f"{cut} of {found['windows']} windows were too long for the model and were read in parts"] * (cut > 0),
    ]
