"""The data of a run: the prepared data set, held-out batches and the training loader."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist

from cram_composer.config.schema.run import RunConfig
from cram_composer.config.validation.run import check_row_length
from cram_composer.data.loading.open_dataset import open_held_out, open_train
from cram_composer.data.loading.prepare import PreparedDataset, prepare_dataset
from cram_composer.data.loading.stream import Batch, TrainLoader, evaluation_batches
from cram_composer.data.manifest import fingerprint, held_out_splits
from cram_composer.data.manifest_checks import HELD_OUT
from cram_composer.data.masking import build_collator, evaluation_collator, word_joins
from cram_composer.errors import CramError
from cram_composer.runs.folder import RunFolder


@dataclass(frozen=True)
class HeldOutBatches:
    """This rank's batches of a held-out split.

    Attributes:
        name: of the set; empty for validation.
        in_loop: for evaluations during training.
        final: for the evaluation after training.
    """

    name: str
    in_loop: list[Batch]
    final: list[Batch]


@dataclass(frozen=True)
class Batches:
    """This rank's batches.

    Attributes:
        loader: training batches.
        held_out: the validation split, then further held-out sets.
    """

    loader: TrainLoader
    held_out: list[HeldOutBatches]


def prepare_data(config: RunConfig, folder: RunFolder) -> PreparedDataset:
    """Build or find the data set and copy its tokenizer into the run folder. Collective."""
    data = prepare_dataset(config.data, dist.get_local_rank() == 0, long_timeout_barrier())
    # The tokenizers library warns when the loader forks. Nothing is tokenized from here on.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    check_row_length(config, data.manifest["sequence_length"])
    if config.model.document_masking and data.manifest["config"]["packing"].get("segments") == "sentence":
        raise CramError(
            f"model.document_masking: {data.root} has [SEP] after sentences (packing.segments=sentence), not only "
            "after documents; set model.document_masking=false or build without it"
        )
    if dist.get_global_rank() == 0:
        folder.copy_tokenizer(data.tokenizer)
    return data


def check_same_data(record: dict[str, Any], data: PreparedDataset, run: Path) -> None:
    """Check that the data set is the one that a run was started with, wherever it is now.

    Args:
        record: the record of earlier attempts.
        data: the data set of this attempt.
        run: the run folder, for the error message.

    Raises:
        CramError: another data set.
    """
    before, now = fingerprint(record["data"]), fingerprint(data.manifest)
    if before != now:
        raise CramError(
            f"{data.root}: not the data set of {run} (manifest {now}, the run began with {before}); set data.local or "
            "data.remote to a copy of that one, or run_name=... for a new run"
        )


def open_batches(config: RunConfig, data: PreparedDataset, pin_memory: bool) -> Batches:
    """Open all splits for this rank; `pin_memory` as for TrainLoader.

    Raises:
        CramError: a held-out split is smaller than one batch per device.
    """
    held_out, cached = [], 0  # bytes in the cache
    for split in held_out_splits(data.manifest):
        batches, used = _held_out_batches(config, data, split, cached)
        held_out.append(batches)
        cached += used
    return Batches(_train_loader(config, data, cached, pin_memory), held_out)


def long_timeout_barrier() -> Callable[[], None]:
    """Return a barrier that waits for work of hours on one rank; NCCL's barrier times out after ten minutes."""
    if dist.get_world_size() == 1:
        return lambda: None
    group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=2))

    def barrier() -> None:
        torch.distributed.barrier(group)  # type: ignore[arg-type]  # new_group's other result is for ranks outside it

    return barrier


def _held_out_batches(config: RunConfig, data: PreparedDataset, split: str, cached: int) -> tuple[HeldOutBatches, int]:
    """Return the batches of a split, and the bytes that their shards use in the cache besides `cached`."""
    rank, world_size = dist.get_global_rank(), dist.get_world_size()
    collator = evaluation_collator(**_token_ids(config, data), objective=config.objective)
    settings = config.eval
    rows, used = open_held_out(data, split, max(settings.rows, settings.final_rows), cached)
    final = evaluation_batches(rows[: settings.final_rows], collator, settings.batch_size, rank, world_size)
    if not final:
        raise CramError(
            f"eval.batch_size: {settings.batch_size} rows on each of {world_size} device(s) exceed the {len(rows)} "
            f"rows of {split} in {data.root}; lower it or build a larger split"
        )
    in_loop = evaluation_batches(rows[: settings.rows], collator, settings.batch_size, rank, world_size)
    name = "" if split == "validation" else split.removeprefix(HELD_OUT)
    return HeldOutBatches(name, in_loop, final), used


def _train_loader(config: RunConfig, data: PreparedDataset, cached: int, pin_memory: bool) -> TrainLoader:
    rank, world_size = dist.get_global_rank(), dist.get_world_size()
    words = config.objective.unit != "token"
    joins = word_joins(data.tokenizer, data.manifest["vocab_size"]) if words else None
    collator = build_collator(config.objective, **_token_ids(config, data), joins=joins)
    return TrainLoader(
        open_train(data, config.data, seed=config.seed_of("order"), rank=rank, world_size=world_size, reserved=cached),
        collator,
        rows=config.train.batch_size // world_size,
        microbatch=config.train.microbatch,
        seq_length=data.manifest["sequence_length"],
        seed=config.seed_of("masks"),
        rank=rank,
        pin_memory=pin_memory,
    )


def _token_ids(config: RunConfig, data: PreparedDataset) -> dict[str, Any]:
    """Return the token ids for a collator; padding and separator are None if the collator must ignore them."""
    tokens = data.manifest["special_tokens"]
    return {
        "vocab_size": data.manifest["vocab_size"],
        "special_ids": tuple(tokens.values()),
        "mask_id": tokens["mask"],
        "pad_id": tokens["pad"] if data.manifest["packing"] == "best-fit" else None,
        "sep_id": tokens["sep"] if config.model.document_masking else None,
    }
