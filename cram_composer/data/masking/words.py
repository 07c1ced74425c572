"""Word boundaries between the tokens of a vocabulary."""

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
_CLASS_BY_CATEGORY = {"L": _LETTER, "M": _LETTER, "N": _DIGIT}


def word_joins(folder: Path, vocab_size: int) -> NDArray[np.uint8]:
    """Return a table uint8 [vocab_size] that tells which tokens belong to the same word.

    Token b continues the word of the preceding token a if table[b] & (table[a] >> 4). WordPiece marks continuations in
    b ("##ing"). In vocabularies whose words include the preceding space, a word is a run of letters, of digits or of
    other signs, as in pre-tokenizers: "dog" and the following "," are two words. A table of word-starting tokens could
    not express that.

    Raises:
        CramError: the tokens do not mark where words begin.
    """
    backend = open_backend(folder)
    join_flags = _join_flags_function(json.loads(backend.to_str()), folder)
    table = np.zeros(vocab_size, dtype=np.uint8)
    for token, number in backend.get_vocab().items():
        continues, continued = join_flags(token)
        table[number] = continues | continued << 4
    return table


def _join_flags_function(tokenizer: dict[str, Any], folder: Path) -> Callable[[str], tuple[int, int]]:
    """Return a function from a token to the flags with which it joins the preceding and the following token."""
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
        return lambda token: _spaced_token_flags(decoder.decode([token]), " ")
    tokens = model["vocab"] if isinstance(model["vocab"], dict) else [token for token, _ in model["vocab"]]
    if any(token.startswith(SPACE) for token in tokens):
        return lambda token: _spaced_token_flags(token, SPACE)
    raise CramError(
        f"{folder}: the tokenizer's tokens do not mark where words begin, which objective.unit=word and span "
        "need; set objective.unit=token"
    )


def _spaced_token_flags(token: str, space: str) -> tuple[int, int]:
    if token == space:
        return 0, _ANY  # begins a word whose first letter was not merged with its space
    if not token:
        return 0, 0
    return 0 if token.startswith(space) else _character_class(token[0]), _character_class(token[-1])


def _character_class(character: str) -> int:
    if character == "\N{REPLACEMENT CHARACTER}":
        return _LETTER  # part of a character's bytes; in running text mostly a letter
    return _BLANK if character.isspace() else _CLASS_BY_CATEGORY.get(unicodedata.category(character)[0], _SIGN)
