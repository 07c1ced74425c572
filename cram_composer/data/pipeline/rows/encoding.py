"""Fast tokenization of many texts with a cache of words.

A tokenizer that cuts text at every space before anything else gives a word the same tokens wherever it occurs, and in a
natural language almost every word has occurred before. Most of the work is then a look-up.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from cram_composer.data.pipeline.text import PIECE_CHARACTERS

Encode = Callable[[list[str]], list[NDArray[np.uint32]]]

_MAX_CACHED_WORDS = 1 << 18  # then the cache is cleared: text with few repeated words must not use up memory
_MAX_CACHED_CHARACTERS = 1 << 22  # in cached words
_SIGNS = r"!-/:-@\[-`{-~"
_BERT_WORDS = re.compile(f"[^ {_SIGNS}]+|[{_SIGNS}]").findall  # BERT's pre-tokenizer on ASCII text
# Normalizers of single characters, whose effect on a word does not depend on its neighbours.
_CONTEXT_FREE = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"}


def build_encoder(backend: Tokenizer) -> Encode:
    """Return the fastest function from texts to arrays of token ids, without special tokens, for this tokenizer.

    The texts must have single spaces between words and none at their ends. If a text begins with characters that the
    normalizer drops, its first word may be tokenized as if after a space, unlike by the tokenizer itself.
    """
    return WordEncoder(backend) if cuts_at_spaces(backend) else TextEncoder(backend)


def cuts_at_spaces(backend: Tokenizer) -> bool:
    """Return True if the tokens of a word do not depend on the rest of the text.

    True for BERT's pre-tokenizer and for this project's vocabularies, which put a space before the first word and cut
    before every space. Any other tokenizer gives False.
    """
    state = json.loads(backend.to_str())
    if any(not token["special"] for token in state["added_tokens"]):
        return False  # an added token may contain a space or be part of a word
    if not _is_context_free(state["normalizer"]) or not _cuts_at_spaces(state["pre_tokenizer"]):
        return False
    # ByteLevel merges the spaces that remain where normalization drops consecutive words.
    return not (_drops_words(state["normalizer"]) and "ByteLevel" in json.dumps(state["pre_tokenizer"]))


def _is_context_free(normalizer: dict | None) -> bool:
    if normalizer is None or normalizer["type"] in _CONTEXT_FREE:
        return True
    if normalizer["type"] == "Sequence":
        return all(map(_is_context_free, normalizer["normalizers"]))
    # A character class replaces single characters; any other pattern may span spaces.
    pattern = normalizer.get("pattern", {}).get("Regex", "") if normalizer["type"] == "Replace" else ""
    return len(pattern) == 1 or re.fullmatch(r"\[[^\[\] ]+\]\+?", pattern) is not None


def _drops_words(normalizer: dict | None) -> bool:
    return normalizer is not None and normalizer["type"] == "Sequence"


def _cuts_at_spaces(pre_tokenizer: dict | None) -> bool:
    if pre_tokenizer is None:
        return False
    if pre_tokenizer["type"] == "BertPreTokenizer":
        return True
    steps = pre_tokenizer.get("pretokenizers", [])
    if len(steps) != 2 or steps[0]["type"] != "Metaspace" or steps[0]["prepend_scheme"] != "first":
        return False
    return steps[1]["type"] in ("Split", "ByteLevel") and not steps[0]["split"]


class TextEncoder:
    """Tokenizes every text, long ones in pieces, on all threads of the library."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend

    def __call__(self, texts: list[str]) -> list[NDArray[np.uint32]]:
        cut = [_cut_at_spaces(text) for text in texts]
        encodings = self._backend.encode_batch_fast(list(chain.from_iterable(cut)), add_special_tokens=False)
        encoded = iter(encodings)
        return [np.array([i for _ in pieces for i in next(encoded).ids], np.uint32) for pieces in cut]


def _cut_at_spaces(text: str) -> list[str]:
    """Cut a text at spaces into pieces of up to PIECE_CHARACTERS, to keep all threads busy."""
    pieces = []
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        end = text.rfind(" ", start, start + PIECE_CHARACTERS)
        end = start + PIECE_CHARACTERS if end <= start else end
        pieces.append(text[start:end])
        start = end + (text[end] == " ")
    return [*pieces, text[start:]]


class WordEncoder:
    """Tokenizes each word at its first occurrence. The cache takes at most about 64 MiB."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        bert = type(backend.pre_tokenizer) is pre_tokenizers.BertPreTokenizer
        # The space distinguishes a word from one that the normalizer shortens or drops.
        self._prefix = "" if bert else " "
        # BERT treats every sign as a word and changes only the case of ASCII. There are far fewer distinct words
        # without signs and capitals, and the model alone takes a third of a tokenizer's time per word.
        self._is_bert = bert and type(backend.normalizer) is normalizers.BertNormalizer
        self._lowercase = self._is_bert and backend.normalizer.lowercase
        self._cache = _TokenCache(self._ids)

    def __call__(self, texts: list[str]) -> list[NDArray[np.uint32]]:
        ids = self._cache.__getitem__
        return [np.frombuffer(b"".join(map(ids, self._words(text))), np.uint32) for text in texts]

    def _words(self, text: str) -> list[str]:
        if not self._is_bert:
            return text.split(" ")
        if self._lowercase:
            # Only ASCII: the lower case of other capitals can depend on context.
            text = text.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")
        return _BERT_WORDS(text)

    def _ids(self, word: str) -> bytes:
        if self._is_bert and word.isascii() and word.isprintable():
            return array("I", [token.id for token in self._backend.model.tokenize(word)]).tobytes()
        return array("I", self._backend.encode(self._prefix + word, add_special_tokens=False).ids).tobytes()


class _TokenCache(dict[str, bytes]):
    """Cache of token ids by text; computes missing entries and clears itself when full."""

    def __init__(self, compute: Callable[[str], bytes]) -> None:
        super().__init__()
        self._compute = compute
        self._characters = 0

    def __missing__(self, text: str) -> bytes:
        if len(self) >= _MAX_CACHED_WORDS or self._characters > _MAX_CACHED_CHARACTERS:
            self.clear()
            self._characters = 0
        ids = self[text] = self._compute(text)
        self._characters += len(text)
        return ids
