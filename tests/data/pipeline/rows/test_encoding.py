from __future__ import annotations

import random
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from cram_composer.config.schema.data_build import NormaliseConfig, TokenizerConfig
from cram_composer.data.pipeline.rows import encoding
from cram_composer.data.pipeline.rows.encoding import TextEncoder, WordEncoder, build_encoder, cuts_at_spaces
from cram_composer.data.pipeline.tokenizer.tokenizer import save_tokenizer
from cram_composer.data.pipeline.tokenizer.vocabulary import KINDS, train_tokenizer
from tests.data.conftest import synthetic_documents

# Hard cases for context-free words: signs, scripts, marks, and letters whose form depends on their position.
_ODD = [
    *"aZ9.,-'\"#ßΣςİǅ漢字仮名ꙮ",
    "é",
    "e\u0301",
    "\u200b",
    "\u00ad",
    "…",
    "’",
    "ﬁ",
    "🙂",
    "👩\u200d👧",
    "▁",
    "Ġ",
    "##",
    "[MASK]",
]


def odd_texts(count: int) -> list[str]:
    rng = random.Random(0)
    words = ["".join(rng.choices(_ODD, k=rng.randint(1, 6))) for _ in range(300)]
    return [" ".join(["a", *rng.choices(words, k=rng.randint(1, 60))]) for _ in range(count)]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [*synthetic_documents(100), *odd_texts(200)]


def tokenizer(kind: str, normalise: NormaliseConfig, texts: list[str], folder: Path) -> Tokenizer:
    sample = folder / "sample.txt"
    sample.write_text("\n".join(texts), encoding="utf-8")
    trained = train_tokenizer(sample, TokenizerConfig(kind=kind, vocab_size=700), normalise)
    return save_tokenizer(trained, folder / "tokenizer").backend


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "normalise",
    [NormaliseConfig(), NormaliseConfig(ascii_only=True), NormaliseConfig(lowercase=False, strip_accents=False)],
    ids=["plain", "ascii", "cased"],
)
def test_word_encoder_equals_text_encoder(kind, normalise, texts, tmp_path):
    backend = tokenizer(kind, normalise, texts, tmp_path)
    encode = build_encoder(backend)
    assert isinstance(encode, WordEncoder) == (kind != "byte-bpe" or not normalise.ascii_only)
    expected = [backend.encode(text, add_special_tokens=False).ids for text in texts]
    assert [ids.tolist() for ids in encode(texts)] == expected
    assert [ids.tolist() for ids in encode(texts[::-1])] == expected[::-1], "from the cache"


def test_full_word_cache_is_cleared(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "_MAX_CACHED_WORDS", 50)
    backend = tokenizer("wordpiece", NormaliseConfig(), texts, tmp_path)
    encode = WordEncoder(backend)
    for text in texts:
        (ids,) = encode([text])
        assert ids.tolist() == backend.encode(text, add_special_tokens=False).ids
        assert len(encode._cache) <= 50


def other_pre_tokenizer(backend: Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.Punctuation()


def token_of_two_words(backend: Tokenizer) -> None:
    backend.add_tokens([AddedToken("New York")])


@pytest.mark.parametrize("change", [other_pre_tokenizer, token_of_two_words])
def test_other_tokenizers_encode_whole_texts(change, texts, tmp_path):
    backend = tokenizer("wordpiece", NormaliseConfig(), texts, tmp_path)
    assert cuts_at_spaces(backend)
    change(backend)
    encode = build_encoder(backend)
    assert isinstance(encode, TextEncoder)
    expected = [backend.encode(text, add_special_tokens=False).ids for text in texts]
    assert [ids.tolist() for ids in encode(texts)] == expected


def test_long_texts_are_cut_at_spaces():
    backend = Tokenizer(models.WordLevel({"word": 0}, unk_token="word"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    text = "word " * 30_000 + "word"
    (ids,) = TextEncoder(backend)([text])
    assert ids.tolist() == [0] * 30_001
