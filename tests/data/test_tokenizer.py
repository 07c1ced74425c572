from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cram_composer.config.data_schema import NormaliseConfig, SourceConfig, TokenizerConfig
from cram_composer.data.progress import Progress
from cram_composer.data.sources import open_sources
from cram_composer.data.text import Piece, split_documents
from cram_composer.data.tokenizer import adopt_tokenizer, save_tokenizer, train_tokenizer, write_sample
from cram_composer.errors import CramError

REPOSITORY = Path(__file__).resolve().parents[2]
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


def test_vocabulary_is_the_same_in_every_process_and_with_any_number_of_threads(sample):
    # The trainer's own order of first pieces changes from process to process; 400 entries hold many ties.
    program = (
        "import sys, hashlib; from pathlib import Path\n"
        "from cram_composer.config.data_schema import NormaliseConfig, TokenizerConfig\n"
        "from cram_composer.data.tokenizer import train_tokenizer\n"
        "for limit in (1000, 40):\n"
        "    settings = TokenizerConfig(vocab_size=400, limit_alphabet=limit)\n"
        "    text = train_tokenizer(Path(sys.argv[1]), settings, NormaliseConfig()).to_str()\n"
        "    print(hashlib.sha256(text.encode()).hexdigest())\n"
    )
    outputs = set()
    for threads in ("1", "2", "2"):
        environment = os.environ | {"RAYON_NUM_THREADS": threads}
        command = [sys.executable, "-c", program, str(sample)]
        outputs.add(subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, check=True).stdout)
    assert len(outputs) == 1
    assert len(set(outputs.pop().split())) == 2


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


def test_special_tokens_written_in_a_document_are_text(sample, tmp_path):
    built = save_tokenizer(train_tokenizer(sample, SETTINGS, NormaliseConfig()), tmp_path)
    pieces = list(split_documents([Piece("a [MASK] b [SEP] [PAD]", True)], 0.5, 0))
    ((_, (ids,)),) = built.encode_batches([pieces])
    assert not set(ids) & {0, 2, 3, 4}


def test_sample_is_bounded_and_of_the_train_split(tmp_path, corpus, documents):
    sources = open_sources([SourceConfig(paths=[str(corpus)]), SourceConfig(paths=[str(corpus)])])
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
    sources = open_sources([SourceConfig(paths=[f"{tmp_path}/{n}.txt"], document="line") for n in ("large", "small")])
    write_sample(sources, tmp_path / "sample", 10_000, 1e-9, 0, Progress("", None, False))
    lines = (tmp_path / "sample").read_text().splitlines()
    assert lines.count("small document") == 100
    assert 8_000 < len("\n".join(lines)) <= 10_100


def test_too_small_a_vocabulary(sample):
    with pytest.raises(CramError, match=r"tokenizer.vocab_size: 70 entries cannot hold the text's"):
        train_tokenizer(sample, TokenizerConfig(vocab_size=70), NormaliseConfig())


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
    with pytest.raises(CramError, match="has no pad, cls, sep, mask token"):
        adopt_tokenizer(TokenizerConfig(path=str(tmp_path / "no-mask")), tmp_path / "copy")
