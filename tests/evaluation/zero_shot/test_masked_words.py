"""Bits per character: the same words for every tokenizer, and no advantage from unknown text."""

from __future__ import annotations

import json
import math
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForMaskedLM

from cram_composer.config.schema.evaluation import MaskedWordsConfig
from cram_composer.errors import CramError
from cram_composer.evaluation.zero_shot.masked_words import (
    TextSample,
    Window,
    cut_windows,
    read_parts,
    score_part,
    window_cost,
)
from tests.evaluation.tiny_folders import TEXT, byte_level, save, wordpiece, wrapped
from tests.evaluation.zero_shot.test_masked_scoring import scorer

WINDOW = Window(("The", "river", "Ωflows,", "kindness\u200b", "born"), (1, 2, 3))
SETTINGS = MaskedWordsConfig(mlm_probability=0.3, window_characters=60)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(TEXT * 4))
    return path


def test_bits_per_character_equal_a_computation_by_hand(tmp_path: Path):
    """Two windows with four masked words: pieces, logits of the plain model, and the charge for an [UNK]."""
    save(tmp_path / "model")
    windows = [Window(("the", "king", "flows", "."), (1, 3)), Window(("a", "river", "xΩ"), (1, 2))]
    model = scorer(tmp_path / "model")
    tokenizer = model.tokenizer
    bare = AutoModelForMaskedLM.from_pretrained(tmp_path / "model").eval()
    nats = 0.0
    for words, masked in windows:
        pieces = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
        hidden = [[4] * len(of_word) if n in masked else of_word for n, of_word in enumerate(pieces)]
        with torch.inference_mode():
            logits = bare(torch.tensor([[2, *chain(*hidden), 3]])).logits[0, 1:-1].log_softmax(-1)
        flat = [(piece, n in masked) for n, of_word in enumerate(pieces) for piece in of_word]
        nats -= sum(float(logits[at, piece]) for at, (piece, hide) in enumerate(flat) if hide)
    assert tokenizer("xΩ", add_special_tokens=False)["input_ids"] == [1]
    found = score_part(TextSample("t", windows), model, MaskedWordsConfig(unknown_bits_per_byte=8.0))
    characters = len("king") + len(".") + len("river") + len("xΩ")
    assert found["characters"] == characters
    assert found["bits_per_character"] == pytest.approx((nats / math.log(2) + 8 * 3) / characters, abs=1e-5)
    assert found["unknown_share"] == pytest.approx(2 / characters)
    assert found["nats_per_piece"] == pytest.approx(nats / found["pieces"], abs=1e-5)
    assert found["words"] == 4 and found["windows"] == 2
    assert found["low"] <= found["bits_per_character"] <= found["high"]


def test_tokenizers_mask_exactly_the_same_words():
    for tokenizer in (wrapped(wordpiece()), wrapped(wordpiece(lowercase=False)), wrapped(byte_level())):
        for window in (Window(tuple(TEXT[0].split()), (0, 5, 11)), Window(tuple(TEXT[2].split()), (1, 2))):
            (row,) = window_cost(window, tokenizer, 64).rows
            whole = list(row.input_ids)
            for position, target in zip(row.positions, row.targets, strict=True):
                assert whole[position] == tokenizer.mask_token_id
                whole[position] = target
            assert whole == tokenizer(" ".join(window.words))["input_ids"]
            shown = tokenizer.decode([i for i in row.input_ids if i not in (2, 3, 4)]).lower().replace(" ", "")
            rest = [word for number, word in enumerate(window.words) if number not in window.masked]
            assert shown == "".join(rest).lower()
            hidden = tokenizer.decode(row.targets).lower().replace(" ", "")
            assert hidden == "".join(window.words[number] for number in window.masked).lower()


def test_unknown_text_is_charged_by_the_byte():
    """[UNK] covers a whole unknown word, a zero-width space is dropped, and byte-level BPE knows everything."""
    (row,), cut, characters, size = window_cost(WINDOW, wrapped(wordpiece()), 64)
    assert row.targets.count(1) == 1 and not cut
    assert characters == len("Ωflows") + 1
    assert size == len("Ωflows\u200b".encode())
    assert window_cost(WINDOW, wrapped(byte_level()), 64)[1:] == (False, 0, 0)


def test_tokenizers_with_unknown_text_do_not_score_better(tmp_path: Path):
    """The same model with a vocabulary that lacks most letters: cheap to predict, expensive to spell out."""
    windows = [Window(tuple(sentence.split()), (1, 3, 4)) for sentence in TEXT]
    whole, poor = wordpiece(), wordpiece()
    state = json.loads(poor.to_str())
    state["model"]["vocab"] = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    save(tmp_path / "whole", tokenizer=whole)
    save(tmp_path / "poor", tokenizer=type(poor).from_str(json.dumps(state)))
    rich, ignorant = (score_part(TextSample("t", windows), scorer(tmp_path / n), SETTINGS) for n in ("whole", "poor"))
    assert (rich["unknown_share"], ignorant["unknown_share"]) == (0.0, 1.0)
    assert ignorant["nats_per_piece"] < rich["nats_per_piece"]
    assert ignorant["bits_per_character"] > 8.0


@pytest.mark.parametrize("max_length", [9, 14, 20])
def test_windows_too_long_are_read_in_parts_and_every_word_is_predicted(max_length: int):
    tokenizer = wrapped(wordpiece())
    whole = window_cost(WINDOW, tokenizer, 64)
    parts = window_cost(WINDOW, tokenizer, max_length)
    assert all(len(row.input_ids) <= max_length for row in parts.rows)
    assert parts.cut == (max_length < len(whole.rows[0].input_ids))
    assert [target for row in parts.rows for target in row.targets] == list(whole.rows[0].targets)
    assert parts[2:] == whole[2:]


def test_a_word_too_long_even_alone_is_charged_whole():
    rows, cut, characters, size = window_cost(Window(("the", "unbelievable", "sea"), (1, 2)), wrapped(wordpiece()), 5)
    assert cut and characters == size == len("unbelievable")
    assert [len(row.positions) for row in rows] == [
        len(wrapped(wordpiece())("sea", add_special_tokens=False).input_ids)
    ]


def test_windows_hold_every_word_once_and_end_between_words():
    words = (*" ".join(TEXT).split(), "x" * 50, "end")
    made = list(cut_windows(" \n ".join(words), 30))
    assert tuple(chain(*made)) == words
    assert all(len(" ".join(window)) <= 30 or len(window) == 1 for window in made)
    assert all(len(" ".join(one)) + 1 + len(other[0]) > 30 for one, other in pairwise(made))


def test_the_seed_chooses_the_words(text: Path):
    def chosen(**changes) -> TextSample:
        (part,) = read_parts(MaskedWordsConfig(**{"mlm_probability": 0.3, "window_characters": 60, **changes}), text)
        return part

    assert chosen().windows == chosen().windows != chosen(seed=2).windows
    assert chosen().digest != chosen(seed=2).digest
    words = sum(len(window) for window in cut_windows(text.read_text(), 60))
    masked = sum(len(window.masked) for window in chosen().windows)
    assert abs(masked / words - 0.3) < 4 * math.sqrt(0.3 * 0.7 / words)


def test_text_does_not_depend_on_the_file_format(tmp_path: Path):
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps({"body": one}) + "\n" for one in TEXT))
    with pa.output_stream(str(tmp_path / "lines.jsonl.zst"), compression="zstd") as file:
        file.write((tmp_path / "lines.jsonl").read_bytes())
    pq.write_table(pa.table({"body": TEXT}), tmp_path / "lines.parquet")
    settings = MaskedWordsConfig(text_column="body", mlm_probability=0.5)
    made = [read_parts(settings, tmp_path / f"lines.{end}")[0] for end in ("jsonl", "jsonl.zst", "parquet")]
    assert made[0].windows == made[1].windows == made[2].windows
    (folder,) = read_parts(settings, tmp_path)
    assert len(folder.windows) == 9
    composed, apart = tmp_path / "composed.txt", tmp_path / "apart.txt"
    composed.write_text("caf\u00e9 " * 9)
    apart.write_text("cafe\u0301 " * 9)
    assert read_parts(SETTINGS, composed)[0].windows == read_parts(SETTINGS, apart)[0].windows


def test_the_interval_is_that_of_windows(tmp_path: Path):
    """Equal windows have no spread; otherwise the width is about four standard errors of the ratio."""
    save(tmp_path)
    model = scorer(tmp_path)
    same = score_part(TextSample("t", [Window(("the", "king"), (1,))] * 20), model, MaskedWordsConfig())
    assert same["low"] == pytest.approx(same["high"]) == pytest.approx(same["bits_per_character"])
    words = " ".join(TEXT).split()
    windows = [Window((words[n % 30], words[(7 * n) % 31]), (1,)) for n in range(200)]
    found = score_part(TextSample("t", windows), model, MaskedWordsConfig())
    alone = [score_part(TextSample("t", [w]), model, MaskedWordsConfig(bootstrap=2)) for w in windows]
    characters = np.array([one["characters"] for one in alone])
    residual = (np.array([one["bits_per_character"] for one in alone]) - found["bits_per_character"]) * characters
    error = float(residual.std() / characters.mean() / math.sqrt(len(windows)))
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_losses_of_a_tokenizer_are_noted(tmp_path: Path):
    save(tmp_path / "lower")
    save(tmp_path / "cased", tokenizer=wordpiece(lowercase=False))
    part = TextSample("t", [Window(("the", "king"), (1,))])
    assert score_part(part, scorer(tmp_path / "cased"), SETTINGS)["notes"] == []
    (note,) = score_part(part, scorer(tmp_path / "lower"), SETTINGS)["notes"]
    assert "lower-cases and drops accents" in note


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "none.txt: no such file"),
        ("empty.txt", "  \n", "empty.txt: no word to mask"),
        ("bad.jsonl", '{"text": "a"}\n{', "bad.jsonl:2: not valid JSON"),
        ("key.jsonl", '{"body": "a"}\n', "key.jsonl:1: no column 'text'"),
        ("text.doc", "a", "unsupported type of file"),
    ],
)
def test_bad_texts_are_one_line(name: str, content: str | None, message: str, tmp_path: Path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(CramError, match=message):
        read_parts(MaskedWordsConfig(), tmp_path / name)
