"""`cram data inspect`: numbers of the manifest, sampled rows, and a self-contained page."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streaming import MDSWriter
from tokenizers import Tokenizer, models, pre_tokenizers

from cram_composer.analysis.dataset.page import console_text, page, stages_table
from cram_composer.analysis.dataset.read import load_data_set
from cram_composer.cli import main
from cram_composer.data.pipeline.tokenizer.tokenizer import save_tokenizer
from cram_composer.errors import CramError
from tests.analysis.report.test_report import Reader
from tests.servers import Bucket

WORDS = [f"word{number}" for number in range(50)]
LENGTH, BLOCK = 16, 4
SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
STAGES: list[dict[str, Any]] = [
    {
        "name": "length",
        "documents_in": 1000,
        "documents_out": 900,
        "characters_in": 100_000,
        "characters_out": 96_000,
        "reasons": {"too_short": 93, "too_long": 7},
    },
    {
        "name": "repeated_spans",
        "documents_in": 900,
        "documents_out": 899,
        "characters_in": 96_000,
        "characters_out": 72_000,
        "reasons": {"repeated": 120},
    },
]
EXAMPLES = {
    "kept": ["a document that stayed"],
    "dropped": {
        "length": {"too_short": ["<b>too</b> short & odd"], "too_long": []},
        "repeated_spans": {"repeated": ["a span that was cut"]},
    },
}

MakeDataSet = Callable[..., Path]


def write_split(folder: Path, blocks: list[np.ndarray], compression: str | None) -> dict[str, int]:
    """Write shards of few blocks each to the partition folder 00000, listed in the index of the split."""
    size = 2 * blocks[0].nbytes + 100
    with MDSWriter(
        out=str(folder / "00000"),
        columns={"rows": f"ndarray:uint16:{BLOCK},{LENGTH}"},
        compression=compression,
        hashes=["xxh64"],
        size_limit=size,
    ) as writer:
        for block in blocks:
            writer.write({"rows": block})
    index = json.loads((folder / "00000" / "index.json").read_text())
    (folder / "00000" / "index.json").unlink()
    for shard in index["shards"]:
        for kind in ("raw_data", "zip_data"):
            if shard[kind]:
                shard[kind]["basename"] = f"00000/{shard[kind]['basename']}"
    assert len(blocks) < 3 or len(index["shards"]) > 1
    (folder / "index.json").write_text(json.dumps(index))
    rows = BLOCK * len(blocks)
    return {
        "documents": 40,
        "characters": 6 * rows * LENGTH,
        "rows": rows,
        "tokens": rows * LENGTH,
        "unk_tokens": 2,
        "dropped_tokens": 0,
        "padding_tokens": 0,
        "blocks": len(blocks),
        "bytes": sum((shard["zip_data"] or shard["raw_data"])["bytes"] for shard in index["shards"]),
    }


@pytest.fixture
def make_data_set(tmp_path: Path) -> MakeDataSet:
    """Write a small finished data set; row r of every split begins with word r, and documents have 5 words."""

    def make(name: str = "tiny", compression: str | None = None, **replaced: Any) -> Path:
        root = tmp_path / f"set-{len(list(tmp_path.iterdir()))}"
        vocabulary = {f"[{role.upper()}]": number for role, number in SPECIAL.items()}
        backend = Tokenizer(models.WordPiece(vocabulary | {w: i + 5 for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        built = save_tokenizer(backend, root / "tokenizer")
        assert built.special_tokens == SPECIAL

        def blocks(count: int) -> list[np.ndarray]:
            rows = 5 + np.arange(count * BLOCK)[:, None] % 50 + np.zeros(LENGTH, np.int64)
            rows[:, 5::6] = SPECIAL["sep"]  # two documents of five words, and one that continues in another row
            rows[1::2, 12:] = SPECIAL["pad"]  # padding instead, in every other row
            return list(rows.astype(np.uint16).reshape(count, BLOCK, LENGTH))

        splits = {split: write_split(root / split, blocks(n), compression) for split, n in
                  (("train", 12), ("validation", 1))}  # fmt: skip
        manifest = {
            "format_version": 2,
            "name": name,
            "created_with": {"cram-composer": "0"},
            "seed": 0,
            "sequence_length": LENGTH,
            "block_rows": BLOCK,
            "dtype": "uint16",
            "vocab_size": built.vocab_size,
            "special_tokens": SPECIAL,
            "tokenizer_sha256": hashlib.sha256((root / "tokenizer/tokenizer.json").read_bytes()).hexdigest(),
            "packing": "best-fit",
            "ordering": "sentence-length",
            "compression": compression or "none",
            "partitions": 1,
            "streams": ["train"],
            "splits": splits,
            "stages": STAGES,
            "sources": [{"name": "made", "kind": "files", "licence": "CC0", "documents": 1000, "characters": 100_000}],
            "unigram_validation_nats": 3.912,
            "config": {"name": name, "stages": {"length": {"min_characters": 200}, "repeated_spans": {"length": 75}}},
            "config_hash": "0123456789abcdef",
        }
        (root / "examples.json").write_text(json.dumps(EXAMPLES))
        (root / "manifest.json").write_text(json.dumps(manifest | replaced))
        return root

    return make


def table_lines(text: str) -> dict[str, list[str]]:
    """Return the cells of printed lines by their first cell."""
    cells = [re.split(r" {2,}", line.strip()) for line in text.splitlines()]
    return {line[0]: line[1:] for line in cells if line}


def test_the_console_shows_every_stage_before_and_after(make_data_set: MakeDataSet) -> None:
    text = console_text(load_data_set(str(make_data_set())))
    lines = table_lines(text[: text.index("Documents by reason")])
    # 6 characters a token: (48 + 4) rows of 16 tokens, 6 characters each.
    assert lines["length"] == ["1,000", "900", "90.00 %", "100 k", "96 k", "96.00 %", "≈ 16.67 k", "≈ 16 k"]
    assert lines["repeated spans"][:6] == ["900", "899", "99.89 %", "96 k", "72 k", "75.00 %"]
    assert lines["all stages"] == ["1,000", "899", "89.90 %", "100 k", "72 k", "72.00 %", "≈ 16.67 k", "≈ 12 k"]


def test_reasons_are_counted_with_the_most_frequent_first(make_data_set: MakeDataSet) -> None:
    text = console_text(load_data_set(str(make_data_set())))
    reasons = text[text.index("Documents by reason") : text.index("Splits")]
    assert re.findall(r"(too short|too long|repeated) +(\d+) +([\d.]+) %", reasons) == [
        ("too short", "93", "9.30"),
        ("too long", "7", "0.70"),
        ("repeated", "120", "13.33"),
    ]


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_rows_are_those_of_the_shards(make_data_set: MakeDataSet, compression: str | None) -> None:
    data = load_data_set(str(make_data_set(compression=compression)))
    assert [(sample.block, sample.row) for sample in data.rows["train"]] == [(1, 2), (4, 2), (7, 2), (10, 2)]
    assert [(sample.block, sample.row) for sample in data.rows["validation"]] == [(0, 0), (0, 1), (0, 2), (0, 3)]
    for samples in data.rows.values():
        for sample in samples:
            number = (sample.block * BLOCK + sample.row) % 50
            five = " ".join([f"word{number}"] * 5)
            odd = sample.row % 2
            assert sample.documents == ([five, five] if odd else [five, five, " ".join([f"word{number}"] * 4)])
            assert sample.continues is not bool(odd)
            assert sample.padding == 4 * odd


def test_padding_is_not_text(make_data_set: MakeDataSet) -> None:
    root = make_data_set()
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["splits"]["train"]["padding_tokens"] = 32  # of 832 tokens: 4992 characters in 800
    (root / "manifest.json").write_text(json.dumps(manifest))
    data = load_data_set(str(root))
    assert stages_table(data).rows[0][-1] == f"≈ {round(96_000 / 6.24 / 1000, 2)} k"
    assert table_lines(console_text(data))["padding"] == ["4.167 %", "0.000 %"]  # 32 of 768


def test_the_page_holds_the_same_and_the_examples(make_data_set: MakeDataSet) -> None:
    html = page(load_data_set(str(make_data_set("<script>x</script>"))))
    reader = Reader(html)
    assert not {"script", "link", "img", "iframe", "b"} & set(reader.tags)
    assert reader.references == []
    assert "http" not in html
    for text in ("<script>x</script>", "100,000", "96,000", "13.33 %", "<b>too</b> short & odd", "a span that was cut"):
        assert text in reader.text
    assert "a document that stayed" in reader.text
    assert "min_characters 200" in reader.text
    assert "block 2 of 12, row 3" in reader.text
    assert html.count('<abbr class="border"') == 2 * 8
    assert html.count("4 × [PAD]") == 2  # in validation, whose samples are rows 0 to 3
    assert html.count("<table>") == html.count("<caption>") > 4


def test_colours_are_defined_for_light_and_dark(make_data_set: MakeDataSet) -> None:
    html = page(load_data_set(str(make_data_set())))
    style = html[html.index("<style>") : html.index("</style>")]
    dark = "".join(re.findall(r"prefers-color-scheme: dark\) \{(.*?)\}\s*\}", style, flags=re.DOTALL))
    used = set(re.findall(r"var\(--([a-z0-9-]+)", html)) - {"run"}
    assert used <= set(re.findall(r"--([a-z0-9-]+):", style))
    assert used <= set(re.findall(r"--([a-z0-9-]+):", dark))


def test_a_data_set_without_stages_or_examples_has_a_page(make_data_set: MakeDataSet) -> None:
    root = make_data_set(stages=[])
    (root / "examples.json").unlink()
    data = load_data_set(str(root))
    assert "No stage is enabled" in console_text(data)
    assert "No stage is enabled" in Reader(page(data)).text
    (root / "manifest.json").write_text(json.dumps(dict(data.manifest) | {"stages": STAGES}))
    assert "no examples.json" in Reader(page(load_data_set(str(root)))).text


def test_the_command_writes_the_page_beside_the_data(
    make_data_set: MakeDataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_data_set()
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert main(["data", "inspect", str(root)]) == 0
    assert capsys.readouterr().out.endswith(f"page: {root / 'inspect.html'}\n")
    first = (root / "inspect.html").read_bytes()
    assert main(["data", "inspect", str(root), "--output", str(tmp_path / "deep" / "other.html")]) == 0
    assert (tmp_path / "deep" / "other.html").read_bytes() == first
    after = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert {path: content for path, content in after.items() if path.name != "inspect.html"} == before


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_damaged_data_set_is_one_line_that_names_the_file(make_data_set: MakeDataSet, compression: str) -> None:
    root = make_data_set(compression=compression)
    index = json.loads((root / "train" / "index.json").read_text())["shards"]
    assert index[0]["samples"] == 1  # samples are from blocks 1, 4, 7 and 10
    kind = "zip_data" if compression else "raw_data"
    shard = root / "train" / index[1][kind]["basename"]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CramError, match=rf"{shard}: its xxh64 hash differs from the one in index.json"):
        load_data_set(str(root))
    shard.unlink()
    with pytest.raises(CramError, match=f"{shard.name}") as raised:
        load_data_set(str(root))
    assert "\n" not in str(raised.value)


def test_bad_requests_are_refused_in_one_line(
    make_data_set: MakeDataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "inspect", str(tmp_path / "nothing")]) == 2
    assert "not a finished data set (no manifest.json)" in capsys.readouterr().err
    root = make_data_set()
    assert main(["data", "inspect", str(root), "--output", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    (root / "tokenizer" / "tokenizer.json").write_text("{}")
    assert main(["data", "inspect", str(root)]) == 2
    assert "not the tokenizer that the data set was made with" in capsys.readouterr().err


def test_a_data_set_in_object_storage_is_read_through_its_smallest_shard(
    make_data_set: MakeDataSet, s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    root = make_data_set(compression="zstd")
    shards = json.loads((root / "train" / "index.json").read_text())["shards"]
    smallest = min(shards, key=lambda shard: shard["zip_data"]["bytes"])["zip_data"]["basename"]
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_file() and not (name.startswith("train/00000/") and name != f"train/{smallest}"):
            s3.put(f"sets/tiny/{name}", path.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert main(["data", "inspect", f"{s3.uri}/sets/tiny/"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("page: inspect.html\n")
    html = (tmp_path / "inspect.html").read_text(encoding="utf-8")
    assert f"{s3.uri}/sets/tiny" in Reader(html).text
    assert "a document that stayed" in html
    number = int(re.search(r"block (\d+) of 12, row 1<", html)[1]) - 1  # type: ignore[index]
    assert f">{' '.join([f'word{number * BLOCK % 50}'] * 5)}</span>" in html

    s3.put("sets/tiny/tokenizer/tokenizer.json", b"{}")
    assert main(["data", "inspect", f"{s3.uri}/sets/tiny"]) == 2
    assert f"error: {s3.uri}/sets/tiny/tokenizer/tokenizer.json: not the tokenizer" in capsys.readouterr().err
    s3.put("sets/tiny/manifest.json", b'{"format_version": 1}')
    assert main(["data", "inspect", f"{s3.uri}/sets/tiny"]) == 2
    assert f"error: {s3.uri}/sets/tiny/manifest.json: format version 1" in capsys.readouterr().err
    assert main(["data", "inspect", f"{s3.uri}/sets/none"]) == 2
    assert f"{s3.uri}/sets/none: not a finished data set" in capsys.readouterr().err
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert main(["data", "inspect", f"{s3.uri}/sets/tiny"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert s3.uri in errors[0]
