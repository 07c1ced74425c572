"""Text that a tokenizer does not suit: refused where most of it would be lost, otherwise with advice."""

from __future__ import annotations

import json
import random

import pytest

from cram_composer.config.schema.data_build import DataBuildConfig, FilesConfig, NormaliseConfig, TokenizerConfig
from cram_composer.data.manifest import load_manifest
from cram_composer.data.pipeline.build import build
from cram_composer.errors import CramError

CHINESE = [chr(0x4E00 + number) for number in range(3000)]
ENGLISH = ["the", "house", "stands", "by", "a", "river", "and", "its", "garden", "is", "green"]
GERMAN = ["die", "Häuser", "stehen", "über", "dem", "Fluß", "für", "größere", "Gärten", "grün"]
HINDI = ["हिन्दी", "भाषा", "में", "लिखी", "हुई", "पुस्तक", "विद्यालय", "के", "लिए"]


def texts_of(words: list[str], count: int, joined: str, documents: int = 120) -> list[str]:
    chosen = random.Random(0)
    return [f"{number} {joined.join(chosen.choices(words, k=count))}" for number in range(documents)]


DNA = texts_of(["A", "C", "G", "T"], 400, "")


def build_from(tmp_path, texts, *, normalise=None, progress=True, **tokenizer):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = DataBuildConfig(
        name="x",
        output=str(tmp_path / "out"),
        sources=[FilesConfig(paths=[str(tmp_path / "a.jsonl")])],
        tokenizer=TokenizerConfig(**{"vocab_size": 400, **tokenizer}),
        normalise=normalise or NormaliseConfig(),
        validation_fraction=0.2,
    )
    return build(config, progress=progress)


def warnings_of(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("data: warning:")]


def test_text_without_spaces_is_refused_before_it_is_encoded(tmp_path):
    with pytest.raises(CramError, match=r"tokenizer: 9\d\.\d% of the characters .*; set tokenizer\.kind=byte-bpe$"):
        build_from(tmp_path, DNA)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_a_few_words_beside_text_without_spaces_do_not_hide_it(tmp_path):
    mixed = [f"{' '.join(ENGLISH)} {text}" for text in DNA]
    with pytest.raises(CramError, match=r"9\d\.\d% of the characters become \[UNK\]"):
        build_from(tmp_path, mixed)


def test_the_kind_that_is_advised_works_and_the_counts_are_reported(tmp_path, capsys):
    manifest = load_manifest(build_from(tmp_path, DNA, kind="byte-bpe"))
    assert manifest["splits"]["train"]["unk_tokens"] == 0
    told = capsys.readouterr().err
    assert " characters per token, 0.00% [UNK]" in told
    assert "warning" not in told


def test_a_limited_alphabet_is_named_with_its_share(tmp_path, capsys):
    rare = ["".join(CHINESE[number * 5 : number * 5 + 30]) for number in range(120)]
    texts = [*map(str.__add__, texts_of(CHINESE[:99], 90, ""), rare)]
    build_from(tmp_path, texts, vocab_size=1000, limit_alphabet=300)
    (warning,) = warnings_of(capsys)
    assert "% of the characters become [UNK]" in warning
    assert "raise tokenizer.limit_alphabet (300)" in warning


@pytest.mark.parametrize(("words", "lost"), [(GERMAN, True), (HINDI, True), (ENGLISH, False)])
def test_accents_that_are_removed_are_counted(tmp_path, capsys, words, lost):
    build_from(tmp_path, texts_of(words, 60, " "))
    warnings = warnings_of(capsys)
    assert [("normalise.strip_accents: removes" in warning) for warning in warnings] == [True] * lost


def test_accents_that_are_kept_are_no_loss(tmp_path, capsys):
    build_from(tmp_path, texts_of(HINDI, 60, " "), normalise=NormaliseConfig(strip_accents=False))
    assert warnings_of(capsys) == []


def test_ascii_only_that_removes_the_text(tmp_path):
    with pytest.raises(CramError, match=r"9\d\.\d% .*; set normalise\.ascii_only=false"):
        build_from(tmp_path, texts_of(CHINESE, 90, ""), normalise=NormaliseConfig(ascii_only=True))


def test_a_vocabulary_that_is_too_small_for_the_script(tmp_path, capsys):
    build_from(tmp_path, texts_of(CHINESE, 90, ""), kind="byte-bpe", vocab_size=280)
    assert any("characters per token: the vocabulary is too small" in warning for warning in warnings_of(capsys))


def test_an_existing_tokenizer_of_another_script_is_refused(tmp_path):
    english = build_from(tmp_path, texts_of(ENGLISH, 60, " "), progress=False)
    (tmp_path / "chinese").mkdir()
    with pytest.raises(CramError, match=r"tokenizer\.path does not suit this text"):
        path = str(english / "tokenizer")
        build_from(tmp_path / "chinese", texts_of(CHINESE, 90, ""), vocab_size=32768, path=path)
