"""The validation split: a user's own files, and text that leaves a split empty."""

from __future__ import annotations

import json
import re
import zipfile

import numpy as np
import pytest
from streaming import LocalDataset
from transformers import AutoTokenizer

from cram_composer.config.schema.data_build import (
    ExactDuplicatesConfig,
    FilesConfig,
    LengthConfig,
    StagesConfig,
    TextFiles,
)
from cram_composer.data.manifest import held_out_splits, load_manifest
from cram_composer.data.pipeline.build import build, config_hash
from cram_composer.errors import CramError
from tests.data.conftest import synthetic_documents


@pytest.fixture
def held_out(tmp_path):
    documents = synthetic_documents(60, seed=9)
    (tmp_path / "held-out.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in documents))
    return documents


def text_of(root, split: str) -> str:
    rows = np.concatenate([sample["rows"] for sample in LocalDataset(str(root / split))])
    return " ".join(AutoTokenizer.from_pretrained(root / "tokenizer").batch_decode(rows))


@pytest.mark.parametrize("partitions", [1, 2])
def test_files_for_validation_take_the_place_of_a_share(config, held_out, documents, tmp_path, partitions):
    config.validation_fraction = 0.01
    config.validation = TextFiles(paths=[str(tmp_path / "held-out.jsonl")], text_column="body")
    config.partitions, config.jobs = partitions, 1
    root = build(config, progress=False)
    manifest = load_manifest(root)
    assert manifest["splits"]["validation"]["documents"] == len(held_out)
    assert manifest["splits"]["train"]["documents"] == len(documents)
    assert [(source["name"], source["stream"]) for source in manifest["sources"]] == [
        ("validation", "validation"),
        ("files", "train"),
    ]
    word = max(" ".join(held_out).split(), key=len)
    assert word in text_of(root, "validation")
    assert word not in text_of(root, "train")


def test_a_document_in_both_stays_in_the_validation_split(config, held_out, documents, tmp_path):
    (tmp_path / "held-out.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents[:50]))
    config.validation_fraction = 0.01
    config.validation = TextFiles(paths=[str(tmp_path / "held-out.jsonl")])
    config.stages = StagesConfig(exact_duplicates=ExactDuplicatesConfig())
    splits = load_manifest(build(config, progress=False))["splits"]
    assert splits["validation"]["documents"] == 50
    assert splits["train"]["documents"] == len(documents) - 50


@pytest.mark.parametrize(("partitions", "own_validation"), [(1, False), (2, True)])
def test_named_held_out_sets_are_splits(config, held_out, documents, tmp_path, partitions, own_validation):
    (tmp_path / "code").mkdir()
    for number, text in enumerate(synthetic_documents(20, seed=11)):
        (tmp_path / "code" / f"{number}.py").write_text(text)
    config.held_out = {
        "news": TextFiles(paths=[str(tmp_path / "held-out.jsonl")], text_column="body"),
        "code": TextFiles(paths=[str(tmp_path / "code")], text_suffixes=[".PY"]),
    }
    if own_validation:
        (tmp_path / "own.txt").write_text("\n".join(synthetic_documents(15, seed=12)))
        config.validation = TextFiles(paths=[str(tmp_path / "own.txt")], document="line")
        config.validation_fraction = 0.01
    config.partitions, config.jobs = partitions, 1
    root = build(config, progress=False)
    manifest = load_manifest(root)
    splits = manifest["splits"]
    assert list(splits) == ["train", "validation", "held-out-news", "held-out-code"]
    assert (splits["held-out-news"]["documents"], splits["held-out-code"]["documents"]) == (len(held_out), 20)
    trained = splits["train"]["documents"] + (0 if own_validation else splits["validation"]["documents"])
    assert trained == len(documents) and splits["validation"]["documents"] > 0
    assert held_out_splits(manifest) == ["validation", "held-out-news", "held-out-code"]
    word = max(" ".join(held_out).split(), key=len)
    assert [split for split in splits if word in text_of(root, split)] == ["held-out-news"]


def test_an_empty_held_out_set_names_its_key(config, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    config.held_out = {"news": TextFiles(paths=[str(tmp_path / "empty.txt")])}
    with pytest.raises(CramError, match=r"the held-out-news split is empty: .*change held_out\.news\.paths"):
        build(config, progress=False)


def test_a_fraction_beside_the_files_is_refused(config, held_out, tmp_path):
    config.validation = TextFiles(paths=[str(tmp_path / "held-out.jsonl")])
    with pytest.raises(CramError, match="validation_fraction: has no effect with validation"):
        build(config, progress=False)


def test_data_sets_from_before_these_keys_keep_their_hash(config):
    """The hash of this configuration, before `text_columns`, `validation`, `max_words` and `on_bad_record` existed."""
    fixed = config.model_copy(update={"sources": [FilesConfig(paths=["a.jsonl"])]})
    assert config_hash(fixed) == "08d0328a13d4a453"


def test_one_txt_file_says_how_to_cut_it(config, tmp_path):
    (tmp_path / "wiki.txt").write_text("\n\n".join(synthetic_documents(100)))
    config.sources = [FilesConfig(paths=[str(tmp_path / "wiki.txt")])]
    with pytest.raises(CramError, match=r"wiki\.txt: the only file makes one document.*document: blank-line"):
        build(config, progress=False)
    assert not (tmp_path / "out.partial").exists()
    with zipfile.ZipFile(tmp_path / "wiki.zip", "w") as archive:
        archive.write(tmp_path / "wiki.txt", "wiki.txt")
    config.sources = [FilesConfig(paths=[str(tmp_path / "wiki.zip")])]
    with pytest.raises(CramError, match=r"wiki\.zip: the only file makes one document"):
        build(config, progress=False)
    config.sources = [FilesConfig(paths=[str(tmp_path / "wiki.zip")], document="blank-line")]
    assert load_manifest(build(config, progress=False))["splits"]["validation"]["documents"] > 1


def test_a_few_txt_files_say_how_to_cut_them(config, tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"{name} and more words " * 200)
    config.sources, config.validation_fraction = [FilesConfig(paths=[str(tmp_path / "*.txt")])], 1e-9
    with pytest.raises(CramError, match="split is empty: .*each .txt file is one document: set document: line"):
        build(config, progress=False)


def test_the_stage_that_dropped_everything_is_named(config):
    config.stages = StagesConfig(length=LengthConfig(min_characters=10**6))
    message = "stage 'length' dropped 400 of 400 documents (too-short 400); change its limits or set stages.length=null"
    with pytest.raises(CramError, match=re.escape(message)):
        build(config, progress=False)
