"""Source kind `hub`: a streamed Hugging Face data set."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from cram_composer.config.packages import require_package
from cram_composer.config.paths import expand
from cram_composer.config.schema.data_build import HubConfig
from cram_composer.data.pipeline.sources.base import Part, Source
from cram_composer.data.pipeline.sources.columns import column_names, has_column, missing_column, record_pieces
from cram_composer.data.pipeline.sources.folders import saved_files
from cram_composer.data.pipeline.text import Piece
from cram_composer.errors import CramError
from cram_composer.storage.hub_errors import hub_refusal


def open_hub(config: HubConfig) -> list[Source]:
    """Open a data set as one stream; without a `revision`, pin the newest commit for all passes."""
    require_package("datasets", "source kind 'hub'", "hub")
    folder = expand(config.dataset)
    local = folder.is_dir()
    if local and saved_files(folder) is not None:
        raise CramError(f"{folder}: saved by datasets with save_to_disk; set kind: files and paths: [{folder}]")
    dataset = str(folder) if local else config.dataset
    revision = config.revision or (None if local else _newest_commit(dataset))
    part = Part(dataset, partial(_stream_pieces, dataset, revision, config))
    origin = {"dataset": config.dataset, "subset": config.subset, "split": config.split, "revision": revision}
    limits = config.max_characters, config.max_words
    return [Source(config.name or config.dataset, config.kind, config.licence, [part], origin, *limits)]


def _newest_commit(dataset: str) -> str | None:
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(dataset, timeout=30).sha
    except Exception as error:  # the library also raises errors of its transport
        raise _read_error(dataset, error) from error


def _stream_pieces(dataset: str, revision: str | None, config: HubConfig) -> Iterator[Piece]:
    import datasets

    where, columns = f"hub data set '{dataset}'", column_names(config)
    try:
        stream = iter(
            datasets.load_dataset(dataset, config.subset, split=config.split, revision=revision, streaming=True)
        )
        number = 0
        while (row := next(stream, None)) is not None:
            number += 1
            for column in columns:
                if not has_column(row, column):
                    raise CramError(f"{where}: {missing_column(column, row)}")
            yield from record_pieces(row, columns, f"{where}, row {number}")
    except CramError:
        raise
    except Exception as error:  # errors of network, archives and formats from many libraries
        raise _read_error(dataset, error) from error


def _read_error(dataset: str, error: Exception) -> CramError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    if expand(dataset).is_dir():
        return CramError(f"hub data set '{dataset}' cannot be read: {reason}; or name its files (kind: files)")
    if (refusal := hub_refusal(error)) is not None:
        return CramError(f"hub data set '{dataset}': {refusal}")
    return CramError(
        f"hub data set '{dataset}' cannot be read: {reason}; check its name and the network, or use local files "
        "(kind: files)"
    )
