from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cram_composer.config.schema.data_build import FilesConfig, NormaliseConfig, TokenizerConfig
from cram_composer.data.pipeline.progress import Progress
from cram_composer.data.pipeline.rows.encoding import build_encoder
from cram_composer.data.pipeline.sources import Source, open_sources
from cram_composer.data.pipeline.sources.base import Part
from cram_composer.data.pipeline.text import Piece, split_documents
from cram_composer.data.pipeline.tokenizer.common import most_frequent_characters
from cram_composer.data.pipeline.tokenizer.sample import write_sample
from cram_composer.data.pipeline.tokenizer.tokenizer import adopt_tokenizer, save_tokenizer
from cram_composer.data.pipeline.tokenizer.unigram import _frequent_substrings
from cram_composer.data.pipeline.tokenizer.vocabulary import KINDS, train_tokenizer
from cram_composer.errors import CramError
from tests.conftest import REPOSITORY

SETTINGS = TokenizerConfig(vocab_size=400)


@pytest.fixture(scope="module")
def sample(tmp_path_factory, documents) -> Path:
    path = tmp_path_factory.mktemp("sample") / "sample.txt"
    path.write_text("\n".join([*documents, "Ünïcode, “quotes” – dashes… 漢字 don’t"]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(sample, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(sample, SETTINGS, NormaliseConfig()), path)
    return path


@pytest.fixture(scope="module")
def folders(sample, tmp_path_factory) -> dict[str, Path]:
    """Return a saved tokenizer of every kind."""
    root = tmp_path_factory.mktemp("tokenizers")
    for kind in KINDS:
        settings = TokenizerConfig(kind=kind, vocab_size=400)
        save_tokenizer(train_tokenizer(sample, settings, NormaliseConfig()), root / kind)
    return {kind: root / kind for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_is_the_same_in_every_process_and_with_any_number_of_threads(sample, kind):
    # The trainers order the first pieces differently in every process; 400 entries contain many ties.
    program = (
        "import sys, hashlib; from pathlib import Path\n"
        "from cram_composer.config.schema.data_build import NormaliseConfig, TokenizerConfig\n"
        "from cram_composer.data.pipeline.tokenizer.vocabulary import train_tokenizer\n"
        "for limit in (1000, 40):\n"
        "    settings = TokenizerConfig(kind=sys.argv[2], vocab_size=400, limit_alphabet=limit)\n"
        "    text = train_tokenizer(Path(sys.argv[1]), settings, NormaliseConfig()).to_str()\n"
        "    print(hashlib.sha256(text.encode()).hexdigest())\n"
    )
    outputs = set()
    for threads, seed in (("1", "0"), ("2", "1"), ("2", "2")):
        environment = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", program, str(sample), kind]
        outputs.add(subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, check=True).stdout)
    assert len(outputs) == 1
    assert len(set(outputs.pop().split())) == (1 if kind == "byte-bpe" else 2)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"wordpiece"}))
def test_text_with_any_spacing_and_punctuation_survives_the_round_trip(folders, documents, kind):
    tokenizer = AutoTokenizer.from_pretrained(folders[kind])
    for text in [*documents[:20], 'don\'t (ba), "co di"... fu_ga: 12.5%!', "(ba) - co", '"ba"']:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_same_special_tokens_and_learns_something(folders, documents, kind):
    tokenizer = AutoTokenizer.from_pretrained(folders[kind])
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]) == [0, 1, 2, 3, 4]
    assert len(tokenizer) <= 400
    pair = tokenizer("ba", "co")
    assert sorted(pair) == ["attention_mask", "input_ids"]
    assert [i for i in pair["input_ids"] if i < 5] == [2, 3, 3]
    text = " ".join(documents)
    per_character = 0.38 if kind == "byte-bpe" else 0.32  # most of its 400 entries are bytes
    assert len(tokenizer(text)["input_ids"]) < per_character * len(text)


@pytest.mark.parametrize("kind", KINDS)
def test_mask_replaces_a_word_with_its_space(folders, kind):
    tokenizer = AutoTokenizer.from_pretrained(folders[kind])
    whole, first, last = (tokenizer(text)["input_ids"] for text in ("ba co.", "[MASK] co.", "ba [MASK]."))
    word = tokenizer("ba")["input_ids"][1:-1]
    assert first == [2, 4, *whole[1 + len(word) :]]
    rest = tokenizer("ba co.")["input_ids"][-2:]
    assert last == [2, *word, 4, *rest]


def test_byte_bpe_knows_every_text(folders):
    tokenizer = AutoTokenizer.from_pretrained(folders["byte-bpe"])
    text = "漢字 🙂 क x"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_a_character_outside_the_alphabet_is_unknown(folders, kind):
    tokenizer = AutoTokenizer.from_pretrained(folders[kind])
    assert tokenizer.unk_token_id in tokenizer("ba 🙂 co")["input_ids"]


def test_unigram_has_every_character_of_the_alphabet_and_the_size_asked_for(tmp_path, documents):
    """Includes "▅", which sentencepiece reserves, and characters that occur once."""
    path = tmp_path / "sample.txt"
    path.write_text("\n".join([*documents, "▅ ▅ba ▅ 漢 ⁇"]) + "\n", encoding="utf-8")
    normalise = NormaliseConfig()
    tokenizer = train_tokenizer(path, TokenizerConfig(kind="unigram", vocab_size=200), normalise)
    assert tokenizer.get_vocab_size() == 200
    for character in [*map(chr, range(33, 127)), "▅", "漢", "⁇"]:
        assert tokenizer.token_to_id("[UNK]") not in tokenizer.encode(character).ids, character
    smallest = TokenizerConfig(kind="unigram", vocab_size=len(most_frequent_characters(path, str.lower, 1000)) + 1 + 5)
    assert train_tokenizer(path, smallest, normalise).get_vocab_size() == smallest.vocab_size


def test_initial_pieces_of_unigram_are_the_substrings_that_cover_most_text():
    words = {"▁aba": 3, "▁ab": 2, "ba": 1}
    assert _frequent_substrings(words, 4) == [("▁ab", 15), ("▁aba", 12), ("ab", 10), ("▁a", 10)]
    assert ("ba", 8) in _frequent_substrings(words, 10)
    assert _frequent_substrings({"xy": 1}, 10) == []


def test_unigram_needs_no_more_tokens_than_byte_pair_encoding(folders, documents):
    text = " ".join(documents)
    unigram, bpe = (AutoTokenizer.from_pretrained(folders[kind]).tokenize(text) for kind in ("unigram", "bpe"))
    assert len(unigram) < 1.02 * len(bpe)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_of_one_character_is_enough(tmp_path, kind):
    (tmp_path / "sample.txt").write_text("a\n")
    tokenizer = train_tokenizer(tmp_path / "sample.txt", TokenizerConfig(kind=kind, vocab_size=300), NormaliseConfig())
    assert tokenizer.decode(tokenizer.encode("a").ids) == "a"


def test_folder_loads_by_auto_tokenizer(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer.model_max_length == 512
    assert [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id] == [0, 1, 2]
    assert [tokenizer.sep_token_id, tokenizer.mask_token_id] == [3, 4]
    assert len(tokenizer) <= 400
    pair = tokenizer("Ba co", "di")
    assert sorted(pair) == ["attention_mask", "input_ids"]
    assert tokenizer.decode(pair["input_ids"]) == "[CLS] ba co [SEP] di [SEP]"
    assert tokenizer("ba [MASK]")["input_ids"][-2:] == [4, 3]
    assert len(tokenizer("ba " * 1000, truncation=True)["input_ids"]) == 512


def test_text_survives_the_round_trip(folder, documents):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in documents[:20]:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_normalisation_is_inside_the_tokenizer(folder, sample, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("ÜNÏCODE") == tokenizer.tokenize("unicode")
    save_tokenizer(train_tokenizer(sample, SETTINGS, NormaliseConfig(ascii_only=True)), tmp_path)
    ascii_only = AutoTokenizer.from_pretrained(tmp_path)
    assert ascii_only.tokenize("“don’t” – a… 漢字") == ascii_only.tokenize('"don\'t" - a... ')
    assert all(token.isascii() for token in ascii_only.get_vocab())
    save_tokenizer(train_tokenizer(sample, SETTINGS, NormaliseConfig(lowercase=False, strip_accents=False)), tmp_path)
    cased = AutoTokenizer.from_pretrained(tmp_path)
    assert cased.decode(cased("Ünïcode")["input_ids"], skip_special_tokens=True) == "Ünïcode"


def test_all_of_ascii_is_known_and_no_piece_is_useless(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for character in map(chr, range(33, 127)):
        assert tokenizer.unk_token_id not in tokenizer(character)["input_ids"], character
    assert "##a" in tokenizer.get_vocab()
    # Punctuation and Chinese characters are always words by themselves.
    assert not {"##.", "##-", "##漢"} & tokenizer.get_vocab().keys()


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_written_in_a_document_are_text(sample, tmp_path, kind):
    settings = TokenizerConfig(kind=kind, vocab_size=400)
    built = save_tokenizer(train_tokenizer(sample, settings, NormaliseConfig()), tmp_path)
    (ids,) = build_encoder(built.backend)(["a [MASK] b [SEP] [PAD]"])
    assert not set(ids.tolist()) & {0, 2, 3, 4}


def test_sample_is_bounded_and_of_the_train_split(tmp_path, corpus, documents):
    sources = open_sources([FilesConfig(paths=[str(corpus)]), FilesConfig(paths=[str(corpus)])])
    path = tmp_path / "sample.txt"
    train = {p.text for p in split_documents((Piece(t, True) for t in documents), 0.5, 3) if p.split == 0}
    write_sample(sources, path, 8000, 0.5, 3, Progress("", None, False))
    lines = path.read_text().splitlines()
    assert set(lines) <= train
    assert path.stat().st_size < 8000 + 2 * max(map(len, documents))
    write_sample(sources, path, 10**9, 0.5, 3, Progress("", None, False))
    assert set(path.read_text().splitlines()) == train


def test_sample_gives_every_source_its_share(tmp_path):
    for name, count in (("small", 100), ("large", 100_000)):
        (tmp_path / f"{name}.txt").write_text(f"{name} document\n" * count)
    sources = open_sources([FilesConfig(paths=[f"{tmp_path}/{n}.txt"], document="line") for n in ("large", "small")])
    write_sample(sources, tmp_path / "sample", 10_000, 1e-9, 0, Progress("", None, False))
    lines = (tmp_path / "sample").read_text().splitlines()
    assert lines.count("small document") == 100
    assert 8_000 < len("\n".join(lines)) <= 10_100


def test_spread_sample_covers_the_source_and_is_deterministic(tmp_path):
    lines = [f"document {number} {'x' * (1 + number % 50)}" for number in range(20_000)]
    (tmp_path / "all.txt").write_text("\n".join(lines) + "\n")
    size = (tmp_path / "all.txt").stat().st_size
    (source,) = open_sources([FilesConfig(paths=[str(tmp_path / "all.txt")], document="line")])
    for expected in (size, size // 20, size * 3):  # expected sizes are estimates
        (part,) = source.parts
        guessed = replace(source, parts=[replace(part, expected_bytes=expected)])
        write_sample([guessed], tmp_path / "sample", 20_000, 1e-9, 0, Progress("", None, False), "spread")
        found = (tmp_path / "sample").read_text().splitlines()
        assert 20_000 <= (tmp_path / "sample").stat().st_size < 20_100
        numbers = [int(line.split()[1]) for line in found]
        assert [lines[number] for number in numbers] == found
        assert numbers == sorted(numbers)
        quarters = np.histogram(numbers, 4, (0, 20_000))[0] / len(numbers)
        assert quarters.min() > 0.2
        if expected == size:
            first = found
        assert found == first, "the choice depends on the estimate"
    write_sample([source], tmp_path / "sample", 10**9, 1e-9, 0, Progress("", None, False), "spread")
    assert (tmp_path / "sample").read_text().splitlines() == lines


def test_a_spread_sample_of_a_source_of_unknown_size_is_its_head(tmp_path, capfd):
    pieces = [Piece(f"text {number}", True) for number in range(1000)]
    source = Source("stream", "hub", None, [Part("stream", lambda: iter(pieces))], {})
    write_sample([source], tmp_path / "sample", 100, 1e-9, 0, Progress("", None, False), "spread")
    assert (tmp_path / "sample").read_text().splitlines()[:2] == ["text 0", "text 1"]
    assert capfd.readouterr().err == ("data: tokenizer.sample: the size of stream is unknown; sampling its head\n")


def test_vocabulary_that_is_too_small(sample):
    for kind in ("wordpiece", "bpe", "unigram"):
        with pytest.raises(CramError, match=r"tokenizer.vocab_size: 70 entries cannot hold the text's"):
            train_tokenizer(sample, TokenizerConfig(kind=kind, vocab_size=70), NormaliseConfig())
    with pytest.raises(CramError, match=r"70 entries cannot hold the 256 bytes .* raise it to 261 or more"):
        train_tokenizer(sample, TokenizerConfig(kind="byte-bpe", vocab_size=70), NormaliseConfig())


def test_existing_tokenizer(folder, tmp_path):
    built = adopt_tokenizer(TokenizerConfig(path=str(folder)), tmp_path / "copy")
    assert (tmp_path / "copy" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert built.special_tokens == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def test_existing_tokenizer_that_cannot_be_used(folder, tmp_path):
    with pytest.raises(CramError, match="nowhere is not a folder"):
        adopt_tokenizer(TokenizerConfig(path=str(tmp_path / "nowhere")), tmp_path / "copy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CramError, match="empty cannot be loaded") as error:
        adopt_tokenizer(TokenizerConfig(path=str(tmp_path / "empty")), tmp_path / "copy")
    assert "\n" not in str(error.value)
    no_mask = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), unk_token="[UNK]")
    no_mask.save_pretrained(tmp_path / "no-mask")
    with pytest.raises(CramError, match="names no pad, cls, sep, mask token"):
        adopt_tokenizer(TokenizerConfig(path=str(tmp_path / "no-mask")), tmp_path / "copy")


def test_existing_tokenizer_whose_ids_have_holes(folder, tmp_path):
    state = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = state["model"]["vocab"]
    size = len(vocabulary)
    last = max(vocabulary, key=vocabulary.__getitem__)
    vocabulary[last] = size + 10
    shutil.copytree(folder, tmp_path / "holes")
    (tmp_path / "holes" / "tokenizer.json").write_text(json.dumps(state))
    built = adopt_tokenizer(TokenizerConfig(path=str(tmp_path / "holes")), tmp_path / "copy")
    assert built.vocab_size == size + 11
    assert built.backend.get_vocab_size() == size


@pytest.mark.parametrize(("first", "second"), [("pad", "sep"), ("pad", "unk"), ("unk", "mask"), ("cls", "sep")])
def test_existing_tokenizer_whose_roles_coincide(folder, tmp_path, first, second):
    names = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    names[f"{first}_token"] = names[f"{second}_token"]
    PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **names).save_pretrained(tmp_path / "same")
    with pytest.raises(CramError, match=rf"'\[{second.upper()}\]', as {first} and {second}; add a token"):
        adopt_tokenizer(TokenizerConfig(path=str(tmp_path / "same")), tmp_path / "copy")


def test_folder_of_a_bare_vocabulary_says_how_to_complete_it(folder, tmp_path):
    """The line is Python that works, after the name of the class is imported."""
    (tmp_path / "json").mkdir()
    shutil.copy(folder / "tokenizer.json", tmp_path / "json")
    (tmp_path / "txt").mkdir()
    pieces = AutoTokenizer.from_pretrained(folder).get_vocab()
    (tmp_path / "txt" / "vocab.txt").write_text("\n".join(sorted(pieces, key=pieces.__getitem__)))
    for name in ("json", "txt"):
        with pytest.raises(CramError, match=r"once in Python: .* set tokenizer.path=FOLDER$") as error:
            adopt_tokenizer(TokenizerConfig(path=str(tmp_path / name)), tmp_path / "copy")
        assert len(str(error.value)) < 500
        line = str(error.value).split("in Python: ")[1].split(", then set")[0]
        call = line.replace("FOLDER", str(tmp_path / f"{name}-whole"))
        exec(f"from transformers import {re.match(r'[A-Za-z]+', call)[0]}; {call}")
        built = adopt_tokenizer(TokenizerConfig(path=str(tmp_path / f"{name}-whole")), tmp_path / f"{name}-copy")
        assert built.special_tokens == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
