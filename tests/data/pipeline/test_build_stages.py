"""Stages in a whole build: dropped documents, manifest and examples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from streaming import LocalDataset, StreamingDataset
from transformers import AutoTokenizer

from cram_composer.config.schema.data_build import (
    CleanConfig,
    CompressibilityConfig,
    DataBuildConfig,
    ExactDuplicatesConfig,
    FilesConfig,
    LengthConfig,
    NearDuplicatesConfig,
    PackingConfig,
    RepeatedSpansConfig,
    StagesConfig,
    TokenizerConfig,
)
from cram_composer.data.manifest import Manifest, load_manifest
from cram_composer.data.pipeline.build import build
from tests.data.conftest import synthetic_documents

SPAN = "this sentence of seventy five bytes and a few more is found in many documents here"


@pytest.fixture
def texts() -> list[str]:
    """Return 300 documents plus copies, near copies, an incompressible one and short ones; 20 share a span."""
    documents = synthetic_documents(300)
    for i in range(20):
        documents[i] += f" {SPAN} {i}"
    long_ones = [text for text in documents if len(text.split()) > 100]
    near = [" ".join([*text.split()[:50], "otherwise", *text.split()[51:]]) for text in long_ones[:5]]
    noise = "".join(chr(33 + i) for i in np.random.default_rng(1).integers(0, 94, 400))
    return [*documents, *documents[30:40], documents[41].upper(), *near, noise, "short", "short too"]


def built(texts: list[str], folder: Path, stages: StagesConfig, **changes: object) -> tuple[Path, Manifest]:
    folder.mkdir(exist_ok=True)
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = DataBuildConfig(
        name="test",
        output=str(folder / "out"),
        sources=[FilesConfig(paths=[str(folder / "text.jsonl")])],
        tokenizer=TokenizerConfig(vocab_size=500),
        packing=PackingConfig(sequence_length=32, block_rows=1),
        validation_fraction=0.1,
        stages=stages,
    )
    root = build(config.model_copy(update=changes), progress=False)  # type: ignore[arg-type]
    assert isinstance(root, Path)
    return root, load_manifest(root)


def text_of(root: Path) -> str:
    tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
    rows = np.concatenate([s["rows"] for split in ("train", "validation") for s in LocalDataset(str(root / split))])
    return "\n".join(tokenizer.batch_decode(rows))


@pytest.mark.parametrize("partitions", [1, 2])
def test_every_stage_drops_its_documents(texts, tmp_path, partitions):
    stages = StagesConfig(
        clean=CleanConfig(),
        length=LengthConfig(min_characters=20),
        exact_duplicates=ExactDuplicatesConfig(),
        near_duplicates=NearDuplicatesConfig(),
        repeated_spans=RepeatedSpansConfig(length=75),
        compressibility=CompressibilityConfig(threshold=0.6),
    )
    root, manifest = built(texts, tmp_path / "build", stages, partitions=partitions, jobs=1)
    found = {stage["name"]: stage for stage in manifest["stages"]}
    assert list(found) == list(vars(stages))[:2] + list(vars(stages))[4:]
    dropped = {name: stage["documents_in"] - stage["documents_out"] for name, stage in found.items()}
    assert dropped["clean"] == 0
    assert dropped["length"] == 2
    assert found["length"]["reasons"] == {"too-short": 2}
    assert dropped["exact_duplicates"] == 11
    assert dropped["near_duplicates"] == 5
    assert found["repeated_spans"]["reasons"]["parts-of-it"] == 19
    assert found["repeated_spans"]["characters_in"] - found["repeated_spans"]["characters_out"] > 19 * 75
    assert dropped["compressibility"] == 1
    for before, after in zip(manifest["stages"], manifest["stages"][1:], strict=False):
        assert after["documents_in"] == before["documents_out"]
    kept = sum(split["documents"] for split in manifest["splits"].values())
    assert kept == manifest["stages"][-1]["documents_out"] == 300
    assert manifest["sources"][0]["documents"] == len(texts)
    examples = json.loads((root / "examples.json").read_text())
    assert set(examples["dropped"]["length"]["too-short"]) == {"short", "short too"}
    assert len(examples["kept"]) == 20
    assert any(SPAN in text for text in examples["dropped"]["repeated_spans"]["parts-of-it"])
    # The first copy of the span is kept; rows may cut it.
    assert text_of(root).count("seventy five bytes") <= 1


def test_stages_off_change_nothing(texts, tmp_path):
    root, manifest = built(texts, tmp_path / "build", StagesConfig())
    assert manifest["stages"] == []
    assert sum(split["documents"] for split in manifest["splits"].values()) == len(texts)
    assert text_of(root).count("seventy five bytes") > 10


def test_likely_rows_come_first(tmp_path):
    # Words of known frequency: half of the documents consist of the most common of eight words.
    random = np.random.default_rng(0)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    texts = [" ".join(["alpha"] * 60) + f" {i}" for i in range(200)]
    texts += [" ".join(random.choice(words[1:], 60)) + f" {i}" for i in range(200)]
    likely, _ = built(texts, tmp_path / "likely", StagesConfig(), ordering="unigram-likelihood")
    tokenizer = AutoTokenizer.from_pretrained(likely / "tokenizer")
    alpha = tokenizer.convert_tokens_to_ids("alpha")
    rows = np.concatenate([sample["rows"] for sample in LocalDataset(str(likely / "train"))])
    share = (rows == alpha).mean(axis=1)
    half = len(share) // 3
    assert share[:half].mean() > 0.9
    assert share[-half:].mean() < 0.05
    counts = np.bincount(rows.ravel())
    nats = np.log(counts.sum()) - np.log(np.maximum(counts, 1))
    mean = nats[rows].mean(axis=1)
    assert (np.diff(mean) > -1e-6).all(), "rows are not ordered by likelihood"


@pytest.mark.parametrize("partitions", [1, 3])
def test_order_holds_over_buckets_and_partitions(texts, tmp_path, monkeypatch, partitions):
    monkeypatch.setattr("cram_composer.data.pipeline.rows.shuffle._FILL_FRACTION", 1 / 256)  # 4 KiB buckets
    root, manifest = built(
        texts, tmp_path / "b", StagesConfig(), ordering="fragment", partitions=partitions, jobs=1, shuffle_memory_mib=1
    )
    rows = np.concatenate([sample["rows"] for sample in LocalDataset(str(root / "train"))])
    ends = (rows == manifest["special_tokens"]["sep"]).sum(axis=1)
    assert (np.diff(ends) >= 0).all()
    assert len(set(ends.tolist())) > 1


def test_short_sentences_come_first(tmp_path):
    random = np.random.default_rng(0)
    texts = [" ".join(f"word {n} {w}." for w in random.choice(["one", "two"], 30)) for n in range(100)]
    texts += [" ".join(random.choice(["long", "words", "without", "end"], 100)) + f" {n}." for n in range(100)]
    root, _ = built(texts, tmp_path / "b", StagesConfig(), ordering="sentence-length")
    tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
    rows = np.concatenate([sample["rows"] for sample in LocalDataset(str(root / "train"))])
    stops = (rows == tokenizer.convert_tokens_to_ids(".")).sum(axis=1)
    assert (np.diff(stops) <= 0).all()
    assert stops[0] > 5


def test_compressed_shards_hold_the_same_rows(texts, tmp_path):
    plain, _ = built(texts, tmp_path / "plain", StagesConfig())
    packed, manifest = built(texts, tmp_path / "packed", StagesConfig(), compression="zstd")
    assert manifest["compression"] == "zstd"
    index = json.loads((packed / "train" / "index.json").read_text())
    assert {shard["zip_data"]["basename"] for shard in index["shards"]} == {"00000/shard.00000.mds.zstd"}
    assert not list(packed.glob("train/*/*.mds"))
    assert manifest["splits"]["train"]["bytes"] < load_manifest(plain)["splits"]["train"]["bytes"]
    unpacked = {"train": [], "validation": []}  # type: ignore[var-annotated]
    for split, blocks in unpacked.items():
        data = StreamingDataset(local=str(packed), split=split, batch_size=1, validate_hash="xxh64")
        blocks += [data[i]["rows"].tolist() for i in range(data.num_samples)]
        assert blocks == [sample["rows"].tolist() for sample in LocalDataset(str(plain / split))]


def test_best_fit_tears_no_document(texts, tmp_path):
    root, manifest = built(
        texts, tmp_path / "b", StagesConfig(), packing=PackingConfig(kind="best-fit", sequence_length=256, block_rows=1)
    )
    assert manifest["packing"] == "best-fit"
    facts = manifest["splits"]["train"]
    special = manifest["special_tokens"]
    rows = np.concatenate([sample["rows"] for sample in LocalDataset(str(root / "train"))])
    assert facts["padding_tokens"] == (rows == special["pad"]).sum()
    real_ends = [row[row != special["pad"]][-1] for row in rows]
    assert np.mean([end == special["sep"] for end in real_ends]) > 0.9
