"""Whole-word and span masking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models

from cram_composer.config.schema.data_build import NormaliseConfig, TokenizerConfig
from cram_composer.data.masking import IGNORED, MaskedLMCollator, word_joins
from cram_composer.data.masking.units import MAX_WORD_TOKENS, span_lengths, span_starts, word_starts
from cram_composer.data.pipeline.tokenizer.tokenizer import open_backend, save_tokenizer
from cram_composer.data.pipeline.tokenizer.vocabulary import KINDS, train_tokenizer
from cram_composer.errors import CramError

SPECIAL = (0, 1, 2, 3, 4)
SEP, MASK = 3, 4
# Every fourth token continues a word, as in a WordPiece vocabulary.
JOINS = np.where(np.arange(1000) % 4 == 3, 0x11, 0x10).astype(np.uint8)


def rows(count: int = 256, length: int = 128, seed: int = 0) -> NDArray:
    tokens = np.random.default_rng(seed).integers(5, 1000, (count, length)).astype(np.uint16)
    tokens[:, 17] = SEP
    return tokens


def masked(unit: str, tokens: NDArray, probability: float = 0.15, seed: int = 1, **more) -> dict[str, torch.Tensor]:
    collator = MaskedLMCollator(1000, SPECIAL, MASK, max_probability=probability, unit=unit, joins=JOINS, **more)
    return collator(tokens, probability, np.random.default_rng(seed))


def chosen(batch: dict[str, torch.Tensor]) -> NDArray:
    """Return which tokens are labels, bool [B, L]."""
    used = (batch["labels"] != IGNORED).int()
    return torch.zeros_like(batch["input_ids"]).scatter_add(1, batch["masked_positions"], used.long()).bool().numpy()


def words_of(row: NDArray) -> list[list[int]]:
    """Return the words of a row as lists of columns."""
    words: list[list[int]] = []
    for column, token in enumerate(row.tolist()):
        goes_on = column and token % 4 == 3 and token > 4 and row[column - 1] > 4
        if goes_on and len(words[-1]) < MAX_WORD_TOKENS:
            words[-1].append(column)
        else:
            words.append([column])
    return words


@pytest.mark.parametrize("unit", ["word", "span"])
@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_words_are_chosen_whole_and_rows_lack_at_most_a_word(unit: str, probability: float):
    tokens = rows()
    batch = masked(unit, tokens, probability)
    wanted = round(probability * 128)
    assert batch["labels"].shape == (256, wanted)
    for row, is_chosen in zip(tokens, chosen(batch), strict=True):
        words = words_of(row)
        assert all(is_chosen[word].all() or not is_chosen[word].any() for word in words)
        assert wanted - is_chosen.sum() < max(len(word) for word in words)
        assert not is_chosen[17]


def test_words_are_taken_in_random_order_until_one_does_not_fit():
    """Compare with a second implementation, word by word, on the same random numbers."""
    tokens = rows(64)
    batch = masked("word", tokens)
    score = np.random.default_rng(1).random(tokens.shape, dtype=np.float32)
    for row, numbers, is_chosen in zip(tokens, score, chosen(batch), strict=True):
        expected: list[int] = []
        for word in sorted(words_of(row), key=lambda word: numbers[word[0]]):
            if row[word[0]] > 4:
                if len(expected) + len(word) > 19:
                    break
                expected += word
        assert np.flatnonzero(is_chosen).tolist() == sorted(expected)


def test_where_every_word_is_one_token_words_are_masked_like_tokens():
    tokens = rows()
    plain, by_word = (
        MaskedLMCollator(1000, SPECIAL, MASK, unit=unit, joins=np.zeros(1000, np.uint8))(
            tokens, 0.25, np.random.default_rng(1)
        )
        for unit in ("token", "word")
    )
    assert all(torch.equal(plain[name], by_word[name]) for name in plain)


def test_a_very_long_word_is_masked_in_pieces():
    tokens = np.full((64, 128), 7, np.uint16)  # a row is one word
    counts = chosen(masked("word", tokens)).sum(axis=1)
    assert set(counts.tolist()) == {10, 18}  # 19 wanted; the last piece of a row has 8 tokens
    counts = chosen(masked("word", tokens[:, :20])).sum(axis=1)
    assert set(counts.tolist()) == {2, 3}  # a short row with 3 wanted tokens has smaller pieces


@pytest.mark.parametrize("unit", ["word", "span"])
def test_every_token_is_as_likely_as_any_other_of_its_kind(unit: str):
    tokens = np.full((20000, 64), 8, np.uint16)
    hits = chosen(masked(unit, tokens, 0.25)).mean(axis=0)
    assert hits.sum() == pytest.approx(16.0)
    # The last span of a row is truncated, which affects the ends of rows.
    assert np.abs(hits - 0.25).max() < (0.02 if unit == "word" else 0.03)


def test_span_lengths_are_spanberts():
    """The lengths are geometric with p = 0.2, truncated at 10 words; the paper gives a mean of 3.8."""
    lengths = span_lengths(np.random.default_rng(0).random((1000, 1000), dtype=np.float32))
    expected = 0.2 * 0.8 ** np.arange(10)
    assert lengths.mean() == pytest.approx(3.8, abs=0.01)
    assert np.bincount(lengths.ravel(), minlength=11)[1:] / 1e6 == pytest.approx(expected / expected.sum(), abs=0.002)
    edges = span_lengths(np.array([[0.0, 1.0 - 2.0**-24]], np.float32))
    assert edges.tolist() == [[1, 10]]


def test_spans_tile_a_row_in_whole_words_and_end_with_documents():
    tokens = rows(128)
    chance = np.random.default_rng(3).random(tokens.shape, dtype=np.float32)
    joins = np.where(np.isin(np.arange(1000), SPECIAL), 0, JOINS)
    spans = span_starts(word_starts(tokens, joins, MAX_WORD_TOKENS), tokens == SEP, chance)
    lengths = span_lengths(chance)
    for row, drawn, found in zip(tokens, lengths, spans, strict=True):
        opening = np.cumsum(drawn).tolist()
        expected, start = [], 0
        for number, word in enumerate(words_of(row)):
            if number in opening or word[0] == 18:
                start = word[0]
            expected += [start] * len(word)
        assert found.tolist() == expected


def test_a_span_is_replaced_as_one():
    tokens = np.full((4000, 128), 8, np.uint16)  # every token is a word
    batch = masked("span", tokens)
    is_chosen, inputs = chosen(batch), batch["input_ids"].numpy()
    fate = np.where(inputs == MASK, 0, np.where(inputs == 8, 2, 1))  # masked, another token, kept
    shares = np.bincount(fate[is_chosen], minlength=3) / is_chosen.sum()
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.015)
    neighbours = is_chosen[:, 1:] & is_chosen[:, :-1]
    alike = (fate[:, 1:] == fate[:, :-1])[neighbours].mean()
    assert alike > 0.9  # 0.66 for independent tokens; below 1 because spans may touch
    by_word = masked("word", tokens)
    fate = np.where(by_word["input_ids"].numpy() == MASK, 0, 1)
    neighbours = chosen(by_word)[:, 1:] & chosen(by_word)[:, :-1]
    assert (fate[:, 1:] == fate[:, :-1])[neighbours].mean() == pytest.approx(0.68, abs=0.03)


def test_units_need_a_joins_table():
    with pytest.raises(ValueError, match="unit 'word' needs joins"):
        MaskedLMCollator(1000, SPECIAL, MASK, unit="word")


@pytest.mark.parametrize("kind", KINDS)
def test_words_equal_those_of_the_pre_tokenizer(kind: str, documents: list[str], tmp_path: Path):
    odd = '(ba), "co di"... 12.5%! fu_ga: x=3; a--b ba1984co'
    if kind != "byte-bpe":  # byte-BPE cuts these into bytes of unknown class
        odd += " Ünïcode, “quotes” – dashes… don’t"
    sample = tmp_path / "sample.txt"
    sample.write_text("\n".join([*documents, odd]) + "\n", encoding="utf-8")
    settings = TokenizerConfig(kind=kind, vocab_size=400)
    save_tokenizer(train_tokenizer(sample, settings, NormaliseConfig()), tmp_path / "tokenizer")
    backend = open_backend(tmp_path / "tokenizer")
    joins = word_joins(tmp_path / "tokenizer", backend.get_vocab_size())
    assert joins.dtype == np.uint8
    several = 0
    for text in [*documents[:100], odd]:
        encoding = backend.encode(text, add_special_tokens=False)
        found = word_starts(np.array([encoding.ids]), joins, longest=1000)[0]
        number = np.array(encoding.word_ids)
        assert found.tolist() == [int(np.argmax(number == own)) for own in number]
        several += int((found != np.arange(len(found))).sum())
    assert several > 100


def foreign(tmp_path: Path, model: models.Model) -> Path:
    Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_words_of_other_tokenizers(tmp_path: Path):
    ends = models.BPE({"lo": 0, "w</w>": 1, "o</w>": 2}, [], end_of_word_suffix="</w>")
    joins = word_joins(foreign(tmp_path, ends), 4)
    assert word_starts(np.array([[0, 1, 0, 2, 1]]), joins, 10).tolist() == [[0, 0, 2, 2, 4]]
    whole = models.WordLevel({"lo": 0, "wo": 1}, "lo")
    assert word_joins(foreign(tmp_path, whole), 2).tolist() == [0, 0]
    with pytest.raises(CramError, match=r"do not mark where words begin.*objective\.unit=token"):
        word_joins(foreign(tmp_path, models.BPE({"lo": 0, "w": 1}, [])), 2)
