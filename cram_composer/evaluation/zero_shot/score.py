"""`cram eval` for protocols without fine-tuning: score every model on every part of the data, and write the rows."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cram_composer.analysis.console import table_lines
from cram_composer.config.schema.evaluation import ZeroShotConfig
from cram_composer.config.units import format_duration
from cram_composer.errors import CramError
from cram_composer.evaluation.fine_tuning.results import append_result, read_result_lines
from cram_composer.evaluation.fine_tuning.suite import add_to_runs, open_models, precision_on
from cram_composer.evaluation.model_source import ModelSource
from cram_composer.evaluation.zero_shot import masked_words, minimal_pairs
from cram_composer.evaluation.zero_shot.masked_scoring import MaskedScorer, load_mask_tokenizer
from cram_composer.storage.files import write_json

RESULTS_FILE = "zero-shot.jsonl"
_IRRELEVANT_TO_SCORES = ("name", "batch_tokens", "precision")  # the precision actually used is hashed instead

ResultKey = tuple[str, str, str]  # model's hash, settings' hash, part


class Suite(NamedTuple):
    """Functions of a kind of protocol; the first argument of all but `columns` and `notes` is the protocol."""

    read_parts: Callable[..., Sequence[Any]]  # and the data's path; returns parts with `name` and `digest`
    score_part: Callable[..., dict[str, Any]]  # a part, a scorer and the protocol
    summarize: Callable[..., dict[str, Any]]  # and the results by part
    columns: Callable[[dict[str, Any]], dict[str, str]]
    legend: Callable[..., str]  # and the parts
    notes: Callable[[dict[str, Any]], list[str]]


SUITES: dict[str, Suite] = {
    kind: Suite(module.read_parts, module.score_part, module.summarize, module.columns, module.legend, module.notes)
    for kind, module in {"minimal-pairs": minimal_pairs, "masked-words": masked_words}.items()
}


@dataclass(frozen=True)
class PartResult:
    """Result of a model on one part: a line of the results file."""

    model: str
    model_hash: str
    settings_hash: str
    kind: str
    part: str
    found: dict[str, Any]
    seconds: float
    device: str
    precision: str

    @property
    def key(self) -> ResultKey:
        """Identity of the result."""
        return self.model_hash, self.settings_hash, self.part


def score_models(
    names: Sequence[str], protocol: Any, *, data: Path, folder: Path, device: str
) -> tuple[str, list[str]]:
    """Score the parts that have no result in FOLDER/zero-shot.jsonl; write FOLDER/PROTOCOL.json with a row per model.

    Args:
        names: run folders, model folders, or names on the hub; see `find_model`.
        protocol: a protocol of one of the SUITES.
        data: the suite's file or folder.
        folder: folder of the results, to which later evaluations append.
        device: "auto", "cuda" or "cpu".

    Returns:
        The table, and one line for every model that could not be scored.

    Raises:
        CramError: invalid models, data or settings; raised before anything is scored.
    """
    suite = SUITES[protocol.kind]
    models, device = open_models(names, device)
    precision = precision_on(protocol.precision, device)
    for model in models:
        load_mask_tokenizer(model)
    parts = suite.read_parts(protocol, data)
    hashes = {part.name: _settings_hash(protocol, part.digest, precision) for part in parts}
    path = folder / RESULTS_FILE
    done = {result.key: result for result in read_result_lines(path, PartResult)}
    rows, failures = [], []
    for model in models:
        left = [part for part in parts if (model.hash, hashes[part.name], part.name) not in done]
        try:
            for result in _score_model(model, left, hashes, protocol, torch.device(device), precision):
                append_result(path, result)
                done[result.key] = result
        except CramError as error:
            failures.append(str(error))
        keys = [(model.hash, hashes[part.name], part.name) for part in parts]
        scored = {key[2]: done[key].found for key in keys if key in done}
        rows.append(_model_row(suite, protocol, model, scored, len(parts), data))
    write_json(folder / f"{protocol.name}.json", {"rows": rows, "failures": failures})
    add_to_runs(models, protocol.name, rows)
    return _table(suite, rows, suite.legend(protocol, parts)), failures


def _score_model(
    model: ModelSource,
    parts: Sequence[Any],
    hashes: dict[str, str],
    protocol: ZeroShotConfig,
    device: torch.device,
    precision: str,
) -> Any:
    """Yield the results of a model part by part, reporting each."""
    if not parts:
        return
    kind: str = protocol.kind  # type: ignore[attr-defined]
    suite = SUITES[kind]
    scorer = MaskedScorer(model, protocol.seed, device, precision, protocol.batch_tokens)
    for number, part in enumerate(parts, start=1):
        started = time.monotonic()
        found = suite.score_part(part, scorer, protocol)
        seconds = time.monotonic() - started
        yield PartResult(
            model.name, model.hash, hashes[part.name], kind, part.name, found, seconds, device.type, precision
        )
        where = f"{number} of {len(parts)}"
        print(f"eval: {where}: {model.name}, {part.name}: {format_duration(seconds)}", file=sys.stderr, flush=True)


def _settings_hash(protocol: ZeroShotConfig, digest: str, precision: str) -> str:
    """Hash everything that determines a score except the model."""
    values = {key: value for key, value in protocol.model_dump(mode="json").items() if key not in _IRRELEVANT_TO_SCORES}
    text = json.dumps([values, digest, precision], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _model_row(
    suite: Suite, protocol: Any, model: ModelSource, scored: dict[str, Any], count: int, data: Path
) -> dict[str, Any]:
    row = {
        "model": model.name,
        "model_hash": model.hash,
        "protocol": protocol.name,
        "kind": protocol.kind,
        "data": str(data),
        **suite.summarize(protocol, scored),
    }
    missing = count - len(scored)
    row["notes"] = [*[f"{missing} of {count} parts are not scored"] * (missing > 0), *suite.notes(row)]
    return row


def _table(suite: Suite, rows: Sequence[dict[str, Any]], legend: str) -> str:
    """Format the rows as text, one per model, with legend and notes."""
    cells = [suite.columns(row) for row in rows]
    headers = list(dict.fromkeys(header for of_row in cells for header in of_row))
    shown = [
        [row["model"], *(of_row.get(name, "-") for name in headers)] for row, of_row in zip(rows, cells, strict=True)
    ]
    notes = [f"{row['model']}: {note}" for row in rows for note in row["notes"]]
    return "\n".join([*table_lines([["", *headers], *shown], right=range(1, len(headers) + 1)), "", legend, *notes])
