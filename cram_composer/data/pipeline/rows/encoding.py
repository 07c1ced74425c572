"""Token ids of many texts, fast: most words of a text have been tokenized before.

A tokenizer that cuts text at every space before anything else gives a word the same tokens wherever it stands, and
in a natural language almost every word has been seen. Then a text is a list of words and the rest is looking up.
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

_MOST_WORDS = 1 << 18  # then all are forgotten: text whose words hardly ever repeat must not take all memory
_MOST_CHARACTERS = 1 << 22  # of these words
_SIGNS = r"!-/:-@\[-`{-~"
_BERT_WORDS = re.compile(f"[^ {_SIGNS}]+|[{_SIGNS}]").findall  # where BERT's pre-tokenizer cuts ASCII text
# Normalisers that look at single characters, so that what they do to a word does not depend on its neighbours.
_CONTEXT_FREE = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"}


def encoder(backend: Tokenizer) -> Encode:
    """The fastest way to the ids of texts [characters] -> [tokens], no special tokens added, for this tokenizer.

    The texts must have single spaces between words, and none at their ends. If a text begins with characters that the
    normaliser drops, its first word may be taken for one after a space where the tokenizer alone would not.
    """
    return WordEncoder(backend) if cuts_at_spaces(backend) else WholeEncoder(backend)


def cuts_at_spaces(backend: Tokenizer) -> bool:
    """Whether every word of a text has tokens of its own, the same wherever it stands.

    True of BERT's pre-tokenizer and of those of this project's vocabularies, which put a space before a text's first
    word and cut before every space. Tokenizers that are not known to be such are taken not to be.
    """
    state = json.loads(backend.to_str())
    if any(not token["special"] for token in state["added_tokens"]):
        return False  # it may hold a space, or be part of a word
    if not _is_context_free(state["normalizer"]) or not _is_cutting(state["pre_tokenizer"]):
        return False
    # ByteLevel makes one word of the spaces that are left where normalisation drops several words in a row.
    return not (_drops_words(state["normalizer"]) and "ByteLevel" in json.dumps(state["pre_tokenizer"]))


def _is_context_free(normalizer: dict | None) -> bool:
    if normalizer is None or normalizer["type"] in _CONTEXT_FREE:
        return True
    if normalizer["type"] == "Sequence":
        return all(map(_is_context_free, normalizer["normalizers"]))
    # A set of characters is replaced one by one; any other pattern may reach over spaces.
    pattern = normalizer.get("pattern", {}).get("Regex", "") if normalizer["type"] == "Replace" else ""
    return len(pattern) == 1 or re.fullmatch(r"\[[^\[\] ]+\]\+?", pattern) is not None


def _drops_words(normalizer: dict | None) -> bool:
    return normalizer is not None and normalizer["type"] == "Sequence"


def _is_cutting(pre_tokenizer: dict | None) -> bool:
    if pre_tokenizer is None:
        return False
    if pre_tokenizer["type"] == "BertPreTokenizer":
        return True
    steps = pre_tokenizer.get("pretokenizers", [])
    if len(steps) != 2 or steps[0]["type"] != "Metaspace" or steps[0]["prepend_scheme"] != "first":
        return False
    return steps[1]["type"] in ("Split", "ByteLevel") and not steps[0]["split"]


class WholeEncoder:
    """Every text is tokenized, long ones in pieces, on all of the library's threads."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend

    def __call__(self, texts: list[str]) -> list[NDArray[np.uint32]]:
        cut = [_cut(text) for text in texts]
        encodings = self._backend.encode_batch_fast(list(chain.from_iterable(cut)), add_special_tokens=False)
        encoded = iter(encodings)
        return [np.array([i for _ in pieces for i in next(encoded).ids], np.uint32) for pieces in cut]


def _cut(text: str) -> list[str]:
    """Pieces of up to PIECE_CHARACTERS, cut at spaces: a long text keeps all of the tokenizer's threads busy."""
    pieces = []
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        end = text.rfind(" ", start, start + PIECE_CHARACTERS)
        end = start + PIECE_CHARACTERS if end <= start else end
        pieces.append(text[start:end])
        start = end + (text[end] == " ")
    return [*pieces, text[start:]]


class WordEncoder:
    """Each word is tokenized when it is seen for the first time. Takes about 64 MiB at most for the words it knows."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        bert = type(backend.pre_tokenizer) is pre_tokenizers.BertPreTokenizer
        # With its space, a word is told from one that its normaliser leaves nothing or only the end of.
        self._before = "" if bert else " "
        # BERT takes every sign for a word of its own and changes no more of ASCII than its case. Words without signs
        # and capitals are far fewer, and the model alone takes a third of a tokenizer's time for one.
        self._is_bert = bert and type(backend.normalizer) is normalizers.BertNormalizer
        self._lowercase = self._is_bert and backend.normalizer.lowercase
        self._known = _Known(self._ids)

    def __call__(self, texts: list[str]) -> list[NDArray[np.uint32]]:
        ids = self._known.__getitem__
        return [np.frombuffer(b"".join(map(ids, self._words(text))), np.uint32) for text in texts]

    def _words(self, text: str) -> list[str]:
        if not self._is_bert:
            return text.split(" ")
        if self._lowercase:
            # Only ASCII: what becomes of other capitals is the normaliser's business, and may change with their place.
            text = text.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")
        return _BERT_WORDS(text)

    def _ids(self, word: str) -> bytes:
        if self._is_bert and word.isascii() and word.isprintable():
            return array("I", [token.id for token in self._backend.model.tokenize(word)]).tobytes()
        return array("I", self._backend.encode(self._before + word, add_special_tokens=False).ids).tobytes()


class _Known(dict[str, bytes]):
    """Ids by text; those of a text that is new are computed, and all are forgotten when there are too many."""

    def __init__(self, compute: Callable[[str], bytes]) -> None:
        super().__init__()
        self._compute = compute
        self._characters = 0

    def __missing__(self, text: str) -> bytes:
        if len(self) >= _MOST_WORDS or self._characters > _MOST_CHARACTERS:
            self.clear()
            self._characters = 0
        ids = self[text] = self._compute(text)
        self._characters += len(text)
        return ids
