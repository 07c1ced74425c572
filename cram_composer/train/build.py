"""Build a training run from its configuration, up to the first step."""

from __future__ import annotations

import dataclasses
from typing import Any

from composer.utils import dist, reproducibility
from composer.utils.collect_env import get_cpu_model

from cram_composer.algorithms.registry import build_run_algorithms
from cram_composer.budget.budget import build_budget
from cram_composer.budget.ledger import Ledger
from cram_composer.config import Composed
from cram_composer.config.identity import free_changes
from cram_composer.config.schema.run import RunConfig
from cram_composer.device import DeviceChoice, set_up_cpu
from cram_composer.runs.folder import RunFolder
from cram_composer.train.attempts import build_guard, restore_ledger
from cram_composer.train.callbacks import build_callbacks
from cram_composer.train.checkpointing import find_checkpoint
from cram_composer.train.data import check_same_data, long_timeout_barrier, open_batches, prepare_data
from cram_composer.train.export import check_sentences
from cram_composer.train.initial_weights import load_initial_weights
from cram_composer.train.microbatch import choose_microbatch
from cram_composer.train.model import flops_per_full_row_token, set_up_model
from cram_composer.train.prewarm import join, run_in_background
from cram_composer.train.session import Session
from cram_composer.train.trainer import build_trainer


def build(composed: Composed, device: DeviceChoice, folder: RunFolder, previous: dict[str, Any] | None) -> Session:
    """Build a run, or resume it from its newest checkpoint.

    Args:
        composed: the configuration.
        device: the device of this process.
        folder: locked by this process group.
        previous: the record of earlier attempts, None for a new run.

    Raises:
        CramError: invalid configuration or data.
    """
    config: RunConfig = composed.config
    set_up_cpu(device.threads, trains_here=device.name == "cpu")
    _initialize_process_group(config, device)
    data = prepare_data(config, folder)
    if previous is not None:
        check_same_data(previous, data, folder.path)
    barrier = long_timeout_barrier()
    config, microbatch = choose_microbatch(config, device, previous, barrier)
    composed = dataclasses.replace(composed, config=config)
    if config.export.enabled:
        check_sentences(config.export.sentences, data, config.model.max_position_embeddings)
    budget, ledger = build_budget(config.budget, dist.get_world_size()), Ledger()
    run_in_background(get_cpu_model)

    reproducibility.seed_all(config.seed_of("weights"))  # the same weights on every rank
    setup = set_up_model(config, device, data.manifest)
    setup.model.wait_for_ranks = barrier
    init_from = (previous or {}).get("init_from")
    checkpoint = find_checkpoint(folder)
    if config.init_from is not None and checkpoint is None:
        init_from = load_initial_weights(setup.model.model, config.init_from, data)
    batches = open_batches(config, data, pin_memory=device.name == "gpu")
    flops = flops_per_full_row_token(setup, batches, data, config.objective)
    guard = build_guard(config, folder, ledger, setup.strategy)
    algorithms = build_run_algorithms(
        config, budget, batches.loader, data.manifest, setup.model, setup.optimizer, setup.strategy, guard
    )
    callbacks = build_callbacks(config, device, folder, budget, ledger, batches.loader, setup.strategy)

    join()
    trainer = build_trainer(config, device, folder, budget, setup, batches, algorithms, callbacks.ordered, checkpoint)
    setup.strategy.on_step_skipped(guard.step_was_skipped)
    restore_ledger(ledger, folder, checkpoint, previous)
    ledger.outside["data_build"] += data.build_seconds
    callbacks.signals.install()
    return Session(
        composed, folder, device, data, budget, ledger, setup, batches, flops, guard, callbacks, trainer,
        attempts=list((previous or {}).get("attempts", [])),
        changes=free_changes(previous["config"], composed.plain) if previous else {},
        branched_from=(previous or {}).get("branched_from"),
        init_from=init_from,
        microbatch=microbatch,
    )  # fmt: skip


def _initialize_process_group(config: RunConfig, device: DeviceChoice) -> None:
    """Initialize torch.distributed; a single process without sharding needs no group and is faster without one."""
    if dist.get_world_size() > 1 or config.scaleout.strategy not in ("auto", "ddp"):
        dist.initialize_dist(device.name, timeout=600.0 if device.name == "gpu" else 3600.0)
