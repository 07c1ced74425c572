"""Readers of binary tables: Parquet, Arrow and MDS; every row is a document."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cram_composer.data.pipeline.sources.columns import ReadOptions, has_column, missing_column, record_pieces
from cram_composer.data.pipeline.text import Piece
from cram_composer.data.unpack import UnpackError, unpack_zstd
from cram_composer.errors import CramError

_BATCH_ROWS = 64


def read_parquet(path: Path, options: ReadOptions) -> Iterator[Piece]:
    """Read the columns of a Parquet file page by page."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        _check_columns(path, file.schema_arrow.names, options)
        columns = list(options.columns)
        row = 0
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False):
            yield from _table_pieces(path, batch, options, row)
            row += batch.num_rows


def read_arrow(path: Path, options: ReadOptions) -> Iterator[Piece]:
    """Read the columns of an Arrow file or stream, as `datasets` and Feather write them."""
    import pyarrow
    import pyarrow.ipc

    with pyarrow.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        batches: Iterable[Any]
        if is_file:
            file = pyarrow.ipc.open_file(source)
            schema, batches = file.schema, (file.get_batch(number) for number in range(file.num_record_batches))
        else:
            stream = pyarrow.ipc.open_stream(source)
            schema, batches = stream.schema, stream
        _check_columns(path, schema.names, options)
        names = {column if column in schema.names else column.partition(".")[0] for column in options.columns}
        row = 0
        for batch in batches:
            chosen = batch.select(sorted(names))
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield from _table_pieces(path, chosen.slice(start, _BATCH_ROWS), options, row + start)
            row += batch.num_rows


def read_mds_shard(path: Path, options: ReadOptions, shard: dict[str, Any]) -> Iterator[Piece]:
    """Read the columns of a shard of MosaicML Streaming, by its entry in index.json."""
    _check_columns(path, shard["column_names"], options)
    stored = shard["zip_data"]
    if stored is None:
        yield from _mds_pieces(path.parent, path.name, shard, options, path)
        return
    if str(shard["compression"]).partition(":")[0] != "zstd":
        raise CramError(f"{path}: compressed by {shard['compression']}; only zstd and uncompressed MDS shards are read")
    raw = shard["raw_data"]
    with tempfile.TemporaryDirectory(prefix="cram-mds-") as scratch:
        try:
            unpack_zstd(path, Path(scratch) / "shard.mds", raw["bytes"])
        except UnpackError as error:
            raise OSError(str(error)) from None
        yield from _mds_pieces(Path(scratch), "shard.mds", shard, options, path)


def _mds_pieces(folder: Path, name: str, shard: dict[str, Any], options: ReadOptions, path: Path) -> Iterator[Piece]:
    from streaming.base.format import reader_from_json

    entry = {**shard, "raw_data": {**shard["raw_data"], "basename": name}, "zip_data": None, "compression": None}
    reader = reader_from_json(str(folder), "", entry)
    reader.validate(allow_unsafe_types=False)  # pickled columns would run code
    for row in range(shard["samples"]):
        yield from record_pieces(reader.get_item(row), options.columns, f"{path}:{row + 1}")


def _table_pieces(path: Path, batch: Any, options: ReadOptions, first: int) -> Iterator[Piece]:
    for row, record in enumerate(batch.to_pylist(), first + 1):
        yield from record_pieces(record, options.columns, f"{path}:{row}")


def _check_columns(path: Path, names: list[str], options: ReadOptions) -> None:
    for column in options.columns:
        if not has_column(names, column):
            raise CramError(f"{path}: {missing_column(column, names)}")
