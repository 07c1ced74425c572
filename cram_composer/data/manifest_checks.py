"""Checks of a manifest's values against each other; a manifest may come from anybody, so only its types are assumed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

HELD_OUT = "held-out-"  # prefix of the splits of further held-out sets
SPLIT_NAME = rf"train(-[\w-]+)?|validation|{HELD_OUT}[\w-]+"
_ROLES = ("pad", "unk", "cls", "sep", "mask")
_LARGEST_VOCABULARY = {"uint16": 65535, "uint32": 2**32 - 1}  # by dtype


def manifest_problem(manifest: Mapping[str, Any]) -> str | None:
    """Return the first contradiction in a manifest, None for a valid one."""
    return next(_problems(manifest), None)


def _problems(manifest: Mapping[str, Any]) -> Iterator[str]:
    for key in ("sequence_length", "block_rows", "vocab_size"):
        if manifest[key] < 1:
            yield f"{key}: must be a whole number >= 1, got {manifest[key]!r}"
    vocab_size = manifest["vocab_size"]
    if vocab_size > _LARGEST_VOCABULARY.get(manifest["dtype"], 0):
        yield f"dtype: {manifest['dtype']!r} cannot hold the ids of {vocab_size} tokens"
    for role in {*_ROLES, *manifest["special_tokens"]}:
        token = manifest["special_tokens"].get(role)
        if token is None or not 0 <= token < vocab_size:
            yield f"special_tokens.{role}: must be an id below vocab_size ({vocab_size}), got {token!r}"
    if manifest["compression"] not in ("none", "zstd"):
        yield f"compression: must be none or zstd, got {manifest['compression']!r}"
    splits, streams = manifest["splits"], manifest["streams"]
    for name in splits:
        if not re.fullmatch(SPLIT_NAME, name):
            yield f"splits: {name!r} is not a name of a split (train, train-NAME, validation or {HELD_OUT}NAME)"
    named = {name for name in splits if not name.startswith(HELD_OUT)}
    if not streams or len(set(streams)) < len(streams) or {*streams, "validation"} != named:
        yield f"streams: {streams} and validation must be the splits, which are {list(splits)}"
    for name, counts in splits.items():
        yield from _count_problems(name, counts, manifest["sequence_length"], manifest["block_rows"])


def _count_problems(split: str, counts: Mapping[str, Any], length: int, block_rows: int) -> Iterator[str]:
    for key in ("rows", "tokens", "blocks", "bytes"):
        if counts[key] < 1:
            yield f"splits.{split}.{key}: must be a whole number >= 1, got {counts[key]!r}"
    rows, blocks = counts["rows"], counts["blocks"]
    # Only the last blocks of a held-out split, and a split's only block, may be shorter.
    fewest = blocks * block_rows if blocks > 1 and split.startswith("train") else blocks
    if not fewest <= rows <= blocks * block_rows:
        yield f"split {split} has {rows} rows, but {blocks} blocks of {block_rows} rows"
    if counts["tokens"] != rows * length:
        yield f"split {split} has {counts['tokens']} tokens, but {rows} rows of {length} tokens"
