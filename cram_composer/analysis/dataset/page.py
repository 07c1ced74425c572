"""Contents of a data set and the effect of its stages, as text and as an HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cram_composer.analysis.console import table_lines
from cram_composer.analysis.dataset.read import DataSet
from cram_composer.analysis.html.tables import Table, Tile
from cram_composer.analysis.html.templating import render
from cram_composer.analysis.report.configuration import value_text
from cram_composer.analysis.report.data_set import data_set_tables
from cram_composer.config.formatting import NOT_MEASURED, count, decimal, percent, ratio, short_count, short_path
from cram_composer.config.layers import flatten
from cram_composer.errors import CramError
from cram_composer.storage.files import write_atomic

STAGE_TEXTS = {
    "clean": "normalizes text before the other stages",
    "length": "drops documents that are too short or too long",
    "quality": "drops text that does not look like natural language",
    "language": "drops documents in other languages or scripts",
    "exact_duplicates": "keeps the first of identical documents",
    "near_duplicates": "drops documents that are similar to an earlier one",
    "repeated_spans": "cuts long spans that occurred earlier (marked ⟦ ⟧ in the examples)",
    "compressibility": "drops text with few characters per token",
}
_ESTIMATES_NOTE = (
    "Tokens are counted only in the finished data set. Token counts before and after a stage are estimates: "
    "characters divided by {ratio}, the characters per token of the finished data set."
)


@dataclass(frozen=True)
class Bar:
    """Share of the source that is left after a stage."""

    label: str
    documents: float
    characters: float


@dataclass(frozen=True)
class Group:
    """Number of documents dropped for one reason, with example texts."""

    reason: str
    documents: int
    texts: list[str]


@dataclass(frozen=True)
class StageExamples:
    """Examples of documents that a stage dropped, by reason."""

    name: str
    text: str
    settings: str
    groups: list[Group]


def write_page(data: DataSet, output: Path) -> Path:
    """Write the page of a data set to `output`. Raises CramError if the file cannot be written."""
    if output.is_dir():
        raise CramError(f"{output}: is a folder; name an HTML file")
    try:
        write_atomic(output, page(data))
    except OSError as error:
        raise CramError(
            f"{output}: cannot be written ({error.strerror}); choose another file with --output FILE.html"
        ) from error
    return output


def page(data: DataSet) -> str:
    """Self-contained HTML page, identical for the same data set."""
    manifest = data.manifest
    dropped = (data.examples or {}).get("dropped", {})
    _, splits, sources = data_set_tables(manifest)
    return render(
        "data.html.j2",
        title=manifest["name"],
        where=short_path(data.uri),
        facts=facts(data),
        tiles=headline(data),
        stages=stages_table(data),
        token_note=_ESTIMATES_NOTE.format(ratio=decimal(_characters_per_token(data), 2)),
        bars=bars(data),
        reasons=reasons_table(data),
        splits=splits,
        tokenizer=tokenizer_table(data),
        sources=sources,
        rows=data.rows,
        blocks={split: counts["blocks"] for split, counts in manifest["splits"].items()},
        has_examples=data.examples is not None,
        kept=(data.examples or {}).get("kept", []),
        dropped=[_stage_examples(stage, dropped.get(stage["name"], {}), data) for stage in manifest["stages"]],
        configuration=_configuration(data),
        config_hash=manifest["config_hash"],
    )


def console_text(data: DataSet) -> str:
    """Return the contents of the page as text, without examples and rows."""
    lines = [f"{data.manifest['name']}: {', '.join(facts(data))}", ""]
    short = stages_table(data, short=True)
    if short.rows:
        lines += [
            *table_text(short),
            "  ≈ estimated from characters; tokens are counted only in the finished data set",
            "",
        ]
    else:
        lines += ["No stage is enabled: every document was kept unchanged.", ""]
    for table in (reasons_table(data), *data_set_tables(data.manifest)[1:], tokenizer_table(data)):
        if table.rows:
            lines += [*table_text(table), ""]
    return "\n".join(lines).rstrip()


def table_text(table: Table) -> list[str]:
    """Return the caption and the indented lines of a table."""
    return [table.caption, *(f"  {line}" for line in table_lines([table.header, *table.rows], table.numeric))]


def facts(data: DataSet) -> list[str]:
    """Short descriptions of row length, packing, order and storage."""
    manifest = data.manifest
    described = [
        f"rows of {count(manifest['sequence_length'])} tokens",
        f"{manifest['packing']} packing",
        f"{manifest['ordering']} order",
        f"blocks of {count(manifest['block_rows'])} rows",
        "uncompressed shards" if manifest["compression"] == "none" else f"{manifest['compression']} shards",
        f"{count(manifest['partitions'])} partition{'s' * (manifest['partitions'] != 1)}",
    ]
    if len(manifest["streams"]) > 1:
        described.append(f"streams {', '.join(stream.removeprefix('train-') for stream in manifest['streams'])}")
    return described


def headline(data: DataSet) -> list[Tile]:
    """Headline numbers."""
    manifest = data.manifest
    train = [manifest["splits"][stream] for stream in manifest["streams"]]
    validation = manifest["splits"]["validation"]
    tiles = [
        Tile(
            "Training tokens",
            short_count(sum(split["tokens"] for split in train)),
            f"{count(sum(split['rows'] for split in train))} rows",
        )
    ]
    if stages := manifest["stages"]:
        for unit in ("documents", "characters"):
            before, after = stages[0][f"{unit}_in"], stages[-1][f"{unit}_out"]
            tiles.append(
                Tile(f"{unit.capitalize()} kept", percent(ratio(after, before)), f"{count(after)} of {count(before)}")
            )
    return [
        *tiles,
        Tile("Held-out tokens", short_count(validation["tokens"]), f"from {count(validation['documents'])} documents"),
        Tile("Characters per token", decimal(_characters_per_token(data), 2), f"{data.tokenizer_kind} tokenizer"),
        Tile("Unigram baseline", f"{decimal(manifest['unigram_validation_nats'])} nats", "per held-out token"),
    ]


def stages_table(data: DataSet, short: bool = False) -> Table:
    """Documents, characters and tokens before and after every stage; `short` numbers have four digits."""
    shown = short_count if short else count
    per_token = _characters_per_token(data)

    def tokens(characters: int) -> str:
        return f"≈ {short_count(characters / per_token)}" if per_token else NOT_MEASURED

    def row(name: str, stage: dict[str, Any]) -> tuple[str, ...]:
        cells = [name]
        for unit in ("documents", "characters"):
            before, after = stage[f"{unit}_in"], stage[f"{unit}_out"]
            cells += [shown(before), shown(after), percent(ratio(after, before), 2)]
        return *cells, tokens(stage["characters_in"]), tokens(stage["characters_out"])

    stages = data.manifest["stages"]
    rows = [row(_stage_label(stage), stage) for stage in stages]
    if stages:
        ends = {f"{unit}_in": stages[0][f"{unit}_in"] for unit in ("documents", "characters")}
        ends |= {f"{unit}_out": stages[-1][f"{unit}_out"] for unit in ("documents", "characters")}
        rows.append(row("all stages", ends))
    header = ("Stage", "Documents in", "out", "kept", "Characters in", "out", "kept", "Tokens in", "out")
    return Table("Stages, in order", header, rows, numeric=tuple(range(1, 9)), total_rows=1)


def bars(data: DataSet) -> list[Bar]:
    """Shares of the source's documents and characters that are left, at the source and after every stage."""
    stages = data.manifest["stages"]
    if not stages:
        return []
    documents, characters = stages[0]["documents_in"], stages[0]["characters_in"]
    left = [
        Bar(_stage_label(s), ratio(s["documents_out"], documents) or 0.0, ratio(s["characters_out"], characters) or 0.0)
        for s in stages
    ]
    return [Bar("source", 1.0, 1.0), *left]


def reasons_table(data: DataSet) -> Table:
    """Documents that each stage dropped or changed, by reason, most frequent first."""
    rows = [
        (_stage_label(stage), _spaced(reason), count(documents), percent(ratio(documents, stage["documents_in"]), 2))
        for stage in data.manifest["stages"]
        for reason, documents in _by_frequency(stage["reasons"])
    ]
    return Table("Documents by reason", ("Stage", "Reason", "Documents", "Share of its input"), rows, (2, 3))


def tokenizer_table(data: DataSet) -> Table:
    """Properties of the tokenizer."""
    manifest = data.manifest
    unknown = sum(split["unk_tokens"] for split in manifest["splits"].values())
    rows = [
        ("kind", data.tokenizer_kind),
        ("vocabulary", count(manifest["vocab_size"])),
        ("characters per token", decimal(_characters_per_token(data), 2)),
        ("unknown tokens", percent(ratio(unknown, _text_tokens(data)), 3)),
        ("special tokens", ", ".join(f"{role} {number}" for role, number in manifest["special_tokens"].items())),
        ("sha256", manifest["tokenizer_sha256"][:16]),
    ]
    return Table("Tokenizer", ("", "Value"), rows)


def _stage_examples(stage: dict[str, Any], dropped: dict[str, list[str]], data: DataSet) -> StageExamples:
    name = stage["name"]
    settings = (data.manifest["config"].get("stages") or {}).get(name) or {}
    return StageExamples(
        _stage_label(stage),
        STAGE_TEXTS.get(name, ""),
        ", ".join(f"{key} {value_text(value)}" for key, value in flatten(settings).items()),
        [
            Group(_spaced(reason), documents, dropped.get(reason, []))
            for reason, documents in _by_frequency(stage["reasons"])
        ],
    )


def _configuration(data: DataSet) -> Table:
    rows = [(key, value_text(value)) for key, value in flatten(data.manifest["config"]).items()]
    return Table(f"Configuration of the build ({len(rows)} keys)", ("Key", "Value"), rows)


def _by_frequency(reasons: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(reasons.items(), key=lambda item: (-item[1], item[0]))


def _stage_label(stage: dict[str, Any]) -> str:
    return _spaced(stage["name"])


def _spaced(name: str) -> str:
    return name.replace("_", " ").replace("-", " ")


def _text_tokens(data: DataSet) -> int:
    """Number of tokens of all tokenized text, without padding."""
    splits = data.manifest["splits"].values()
    return sum(split["tokens"] + split["dropped_tokens"] - split["padding_tokens"] for split in splits)


def _characters_per_token(data: DataSet) -> float | None:
    return ratio(sum(split["characters"] for split in data.manifest["splits"].values()), _text_tokens(data))
