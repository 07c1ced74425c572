"""Text files in a folder: linked folders are followed; data sets of other libraries are recognised by their files."""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cram_composer.data.pipeline.sources.formats import format_of
from cram_composer.errors import CramError
from cram_composer.storage.paths import resolve_inside

MDS_INDEX = "index.json"


def find_files(folder: Path, left_out: Counter[str], text_suffixes: Sequence[str] = ()) -> list[Path]:
    """List the files of a folder that can be read, sorted; count others by suffix in `left_out`.

    A folder in MDS format stands as its index.json.
    """
    found: list[Path] = []
    seen: set[str] = set()  # a link may lead back to a folder above it
    for name, folders, files in os.walk(folder, followlinks=True):
        here = Path(name)
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        if MDS_INDEX in files and read_mds_index(here / MDS_INDEX) is not None:
            folders.clear()
            found.append(here / MDS_INDEX)
        elif (saved := saved_files(here)) is not None:
            folders.clear()
            found += saved
        else:
            for path in map(here.joinpath, files):
                # macOS puts a binary file with this prefix beside files on foreign disks.
                if format_of(path, text_suffixes) is not None and path.is_file() and not path.name.startswith("._"):
                    found.append(path)
                else:
                    left_out[path.suffix.lower() or "without suffix"] += 1
    return sorted(found)


def expand_glob(path: Path) -> list[Path]:
    """Return the files that match a glob; folders that exist are taken literally, brackets included."""
    base = next((parent for parent in path.parents if parent.is_dir()), Path())
    pattern = str(path.relative_to(base))
    return sorted(
        found for name in glob.glob(pattern, root_dir=base, recursive=True) if (found := base / name).is_file()
    )


def saved_files(folder: Path) -> list[Path] | None:
    """Return the Arrow files of a folder that `datasets` wrote with save_to_disk, None for other folders.

    Raises:
        CramError: it holds several splits.
    """
    if (listing := _read_json(folder / "dataset_dict.json")) is not None and "splits" in listing:
        splits = [str(folder / str(split)) for split in listing["splits"]]
        raise CramError(f"{folder}: saved by datasets with several splits; name the ones to read: {', '.join(splits)}")
    state = _read_json(folder / "state.json")
    if state is None or not (folder / "dataset_info.json").is_file() or "_data_files" not in state:
        return None
    return [resolve_inside(folder, file["filename"], str(folder / "state.json")) for file in state["_data_files"]]


def read_mds_index(path: Path) -> list[dict[str, Any]] | None:
    """Return the entries of the shards in the index.json of a folder in MDS format, None for another file."""
    index = _read_json(path)
    shards = None if index is None else index.get("shards")
    if not isinstance(shards, list) or not all(isinstance(s, dict) and s.get("format") == "mds" for s in shards):
        return None
    return shards


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
