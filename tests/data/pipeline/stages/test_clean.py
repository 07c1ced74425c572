from __future__ import annotations

import pickle
import random
import unicodedata

import pytest

from cram_composer.config.schema.data_build import CleanConfig, NormaliseConfig
from cram_composer.data.pipeline.stages.clean import TYPOGRAPHIC, Cleaner
from cram_composer.data.pipeline.tokenizer.common import normalizer


def any_text(seed: int, size: int) -> str:
    rng = random.Random(seed)
    ranges = [(0, 0x80), (0x80, 0x250), (0x300, 0x370), (0x1E00, 0x2200), (0x2460, 0x2500), (0xAC00, 0xAC40)]
    ranges += [(0x1100, 0x1200), (0x3000, 0x3100), (0xFB00, 0xFB50), (0xFF00, 0xFFF0), (0x1D400, 0x1D500)]
    return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(size))


@pytest.mark.parametrize("form", ["nfkc", "nfc"])
def test_forms(form):
    text = any_text(0, 5000)
    assert Cleaner(CleanConfig(unicode=form))(text) == unicodedata.normalize(form.upper(), text) != text


def test_none_leaves_text_alone():
    text = any_text(1, 5000)
    assert Cleaner(CleanConfig(unicode="none"))(text) == text


@pytest.mark.parametrize("form", ["nfkc", "nfc", "none"])
@pytest.mark.parametrize("to_ascii", [False, True])
def test_cleaning_twice_is_cleaning_once(form, to_ascii):
    cleaner = Cleaner(CleanConfig(unicode=form, ascii=to_ascii))
    for seed in range(20):
        text = cleaner(any_text(seed, 500))
        assert cleaner(text) == text
        assert text.isascii() or not to_ascii
    assert pickle.loads(pickle.dumps(cleaner))("“é”") == cleaner("“é”")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("“Naïve” — it’s a café…", '"Naive" - it\'s a cafe...'),
        ("e\u0301te\u0301", "ete"),
        ("5\N{DOUBLE PRIME} by 3\N{PRIME}", "5\" by 3'"),
        ("no\N{NO-BREAK SPACE}break\N{IDEOGRAPHIC SPACE}here\N{LINE SEPARATOR}there", "no break here\nthere"),
        ("½ cup, ﬁne, Ｆｕｌｌ", "1/2 cup, fine, Full"),
        ("字 and so\N{SOFT HYPHEN}on", " and soon"),
        ("x <\u0338 y", "x < y"),
    ],
)
def test_ascii(text, expected):
    assert Cleaner(CleanConfig(ascii=True))(text) == expected


@pytest.mark.parametrize("form", ["nfkc", "nfc", "none"])
def test_ascii_of_parts_is_that_of_the_whole(form):
    # Converting a few characters at a time gives the same text as converting it whole.
    for seed in range(50):
        text = any_text(seed, 300)
        cleaner = Cleaner(CleanConfig(unicode=form, ascii=True))
        assert cleaner(text) == "".join(map(cleaner, text))


def test_marks_are_spelt_as_the_tokenizer_spells_them():
    tokenizers = normalizer(NormaliseConfig(lowercase=False, ascii_only=True))
    cleaner = Cleaner(CleanConfig(unicode="none", ascii=True))
    marks = [chr(point) for point in range(0x2000, 0x2300)]
    spelt = [mark for mark in marks if cleaner(mark) not in ("", " ", "\n", "/")]
    assert len(spelt) > 15
    differing = {mark for mark in spelt if tokenizers.normalize_str(f"a{mark}b") != f"a{cleaner(mark)}b"}
    assert not differing
    assert set(TYPOGRAPHIC.values()) == {cleaner(mark) for mark in "‘“–…"}
