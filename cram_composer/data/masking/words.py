"""Which tokens of a vocabulary belong to one word when they stand side by side."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import decoders

from cram_composer.data.pipeline.tokenizer.common import SPACE
from cram_composer.data.pipeline.tokenizer.tokenizer import open_backend
from cram_composer.errors import CramError

_LETTER, _DIGIT, _SIGN, _BLANK = 1, 2, 4, 8
_ANY = _LETTER | _DIGIT | _SIGN
_KINDS = {"L": _LETTER, "M": _LETTER, "N": _DIGIT}


def word_joins(folder: Path, vocab_size: int) -> NDArray[np.uint8]:
    """A table uint8 [vocab_size] of the tokenizer in `folder`: token b goes on with the word of token a before it
    where `table[b] & (table[a] >> 4)` is not 0.

    WordPiece says it of b ("##ing"). Where words carry the space before them, a word is a run of letters, of digits or
    of other signs, as pre-tokenizers have it, so that "dog" and the "," after it are two; a table of tokens that start
    a word could not say so.

    Raises CramError, one line, if nothing in the tokens tells where words begin.
    """
    backend = open_backend(folder)
    mark = _marking(json.loads(backend.to_str()), folder)
    table = np.zeros(vocab_size, dtype=np.uint8)
    for token, number in backend.get_vocab().items():
        continues, continued = mark(token)
        table[number] = continues | continued << 4
    return table


def _marking(tokenizer: dict[str, Any], folder: Path) -> Callable[[str], tuple[int, int]]:
    """What of a token may join the token before it, and the one after it, as bits."""
    model = tokenizer["model"]
    prefix, suffix = model.get("continuing_subword_prefix"), model.get("end_of_word_suffix")
    if prefix:
        return lambda token: (int(token.startswith(prefix)), 1)
    if suffix:
        return lambda token: (1, int(not token.endswith(suffix)))
    if model["type"] == "WordLevel":
        return lambda token: (0, 0)
    if '"ByteLevel"' in json.dumps([tokenizer["pre_tokenizer"], tokenizer["decoder"]]):
        decoder = decoders.ByteLevel()
        return lambda token: _spaced(decoder.decode([token]), " ")
    tokens = model["vocab"] if isinstance(model["vocab"], dict) else [token for token, _ in model["vocab"]]
    if any(token.startswith(SPACE) for token in tokens):
        return lambda token: _spaced(token, SPACE)
    raise CramError(
        f"{folder}: nothing in the tokenizer's tokens tells where words begin, which objective.unit=word and span "
        "need; use objective.unit=token"
    )


def _spaced(token: str, space: str) -> tuple[int, int]:
    if token == space:
        return 0, _ANY  # a word whose first letter did not merge with its space
    if not token:
        return 0, 0
    return 0 if token.startswith(space) else _kind(token[0]), _kind(token[-1])


def _kind(character: str) -> int:
    if character == "\N{REPLACEMENT CHARACTER}":
        return _LETTER  # a part of a character's bytes: in running text that is mostly a letter
    return _BLANK if character.isspace() else _KINDS.get(unicodedata.category(character)[0], _SIGN)
