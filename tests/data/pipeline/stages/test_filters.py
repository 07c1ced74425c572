from __future__ import annotations

import pytest

from cram_composer.config.schema.data_build import LanguageConfig, LengthConfig, QualityConfig, StagesConfig
from cram_composer.data.pipeline.stages.filters import FILTERS, language, length, quality
from cram_composer.errors import CramError

SENTENCE = "The quick brown fox jumps over the lazy dog and that is all there is to it. "
GOOD = SENTENCE * 8


def test_filters_are_stages_in_order():
    stages = [name for name in vars(StagesConfig()) if name in FILTERS]
    assert list(FILTERS) == stages == ["length", "quality", "language"]


@pytest.mark.parametrize(
    ("size", "reason"), [(199, "too-short"), (200, None), (1000, None), (1001, "too-long"), (0, "too-short")]
)
def test_length(size, reason):
    assert length("x" * size, LengthConfig(max_characters=1000)) == reason


def test_length_without_a_maximum():
    assert length("x" * 10**7, LengthConfig()) is None


# For each of Gopher's rules, a text just over its limit and one just under it.
QUALITY = {
    "too-few-words": (" ".join(["word"] * 49), " ".join(["word"] * 50)),
    "too-many-words": ("word " * 100_001, "word " * 100_000),
    "short-words": ("it is so " * 40, "yet all " * 40),
    "long-words": ("internationally " * 60, "accordance " * 60),
    "hash-signs": ("word " * 100 + "#tag " * 12, "word " * 100 + "#tag " * 11),
    "ellipses": ("well... oh… " * 5 + "word " * 89, "well... oh… " * 5 + "word " * 90),
    # 19 and 18 of 20 lines that are not empty.
    "bullet-lines": ("• some four words here\n" * 17 + "* 6\n- 7\n\nten", "• some four words here\n" * 18 + "x\ny\n"),
    "ellipsis-lines": (
        "a line of words that runs on and on…\n" * 2 + "and more of the same, but it has an end\n\n" * 4,
        "a line of words that runs on and on…\n" * 2 + "and more of the same, but it has an end\n\n" * 5,
    ),
    "few-alphabetic-words": ("word " * 79 + "1234 " * 21, "word " * 78 + "a1b2 o'clock " + "1234 " * 20),
}


@pytest.mark.parametrize("reason", QUALITY)
def test_quality(reason):
    bad, good = QUALITY[reason]
    assert quality(bad, QualityConfig()) == reason
    assert quality(good, QualityConfig()) is None


def test_good_text_passes_everything():
    defaults = {"length": LengthConfig(), "quality": QualityConfig(), "language": LanguageConfig()}
    assert [reason(GOOD, defaults[name]) for name, reason in FILTERS.items()] == [None] * 3


def test_text_without_words():
    everything = QualityConfig(min_words=0)
    assert quality(" \n ", everything) is None
    assert quality("", QualityConfig()) == "too-few-words"
    assert language("", LanguageConfig(min_stop_words=0, script="GREEK")) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, None),
        ("THE fox? That.", None),  # case and punctuation do not hide a word
        ("the the the", "few-stop-words"),
        ("theory of band together", "few-stop-words"),  # parts of words do not count
        ("Der schnelle braune Fuchs springt über den faulen Hund und das ist alles.", "few-stop-words"),
        ("the fox and " + "лиса " * 20, "other-script"),
        ("the fox and лис", None),  # 9 of 12 letters are Latin
        ("the résumé, and a café", None),
    ],
)
def test_language(text, reason):
    assert language(text, LanguageConfig(min_script=0.75)) == reason


def test_stop_words_are_found_wherever_they_are():
    for size in (100, 2040, 2047, 2048, 2049, 5000):
        for filler in ("x", "x ", "xy z "):
            assert language((filler * size)[:size] + " that is with", LanguageConfig()) is None
    # "then" must not count as "the", wherever the text is cut.
    for size in range(2030, 2060):
        assert language("with " + "x" * size + " then this", LanguageConfig()) == "few-stop-words"


def test_script_share_is_of_letters():
    config = LanguageConfig(stop_words=[], min_stop_words=0, script="CYRILLIC", min_script=0.5)
    assert language("лиса 12345 !!! abc", config) is None
    assert language("лис 12345 !!! abcd", config) == "other-script"
    assert language("all of it Latin", config) == "other-script"
    assert language("字字字", LanguageConfig(min_stop_words=0, script="CJK")) is None


def test_unknown_scripts_are_refused():
    with pytest.raises(CramError, match=r"stages\.language\.script.*'KLINGON'"):
        language("лиса", LanguageConfig(min_stop_words=0, script="KLINGON"))
