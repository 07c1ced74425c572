"""A training run: build every part from the configuration, train until the budget is spent, and finish."""

from __future__ import annotations

import math
import os
import signal
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from composer.utils import dist, reproducibility
from composer.utils.collect_env import get_cpu_model

from cram_composer.algorithms.averaging.swa import with_swa
from cram_composer.algorithms.data_curriculum import DataCurriculum
from cram_composer.algorithms.masking_schedule import MaskingSchedule
from cram_composer.algorithms.nonfinite_guard import NonFiniteGuard
from cram_composer.algorithms.optimizer_hooks import optimizer_support
from cram_composer.algorithms.registry import Parts, build_algorithms
from cram_composer.budget.budget import Budget, build_budget
from cram_composer.budget.callback import BudgetCallback
from cram_composer.budget.early_stop import EarlyStop
from cram_composer.budget.energy import EnergyMeter
from cram_composer.budget.forecast import EpochForecast
from cram_composer.budget.ledger import Ledger
from cram_composer.budget.schedules import build_schedule
from cram_composer.config import Composed
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.units import parse_duration
from cram_composer.config.validation.run import check_row_length
from cram_composer.data.loading.data_spec import training_data
from cram_composer.data.loading.mixture import Curriculum, choose_streams
from cram_composer.data.loading.open_dataset import open_train, open_validation
from cram_composer.data.loading.prepare import DataSet, prepare
from cram_composer.data.loading.stream import Batch, TrainLoader, evaluation_batches
from cram_composer.data.masking import build_collator, evaluation_collator, word_joins
from cram_composer.device import DeviceChoice, set_up_cpu
from cram_composer.errors import CramError
from cram_composer.evaluation.held_out import due_by_progress, held_out_evaluator
from cram_composer.models.factory import build_model
from cram_composer.models.flops import flops_per_token
from cram_composer.models.training_model import MaskedLMTrainingModel
from cram_composer.optim.factory import build_optimizer
from cram_composer.runs.branch_points import BranchPoints
from cram_composer.runs.checkpoints import newest_checkpoint
from cram_composer.runs.folder import RunFolder, environment
from cram_composer.runs.mirror import RunMirror
from cram_composer.scaleout.peer_failure import lost_rank
from cram_composer.scaleout.registry import build_strategy
from cram_composer.train.attempts import Attempt, restore_ledger, rollback_to_checkpoint
from cram_composer.train.callbacks import Heartbeat, TraceWriter
from cram_composer.train.checkpointing import (
    DataPosition,
    RollingCheckpoints,
    Signals,
)
from cram_composer.train.finish import finish, write_record
from cram_composer.train.loggers import build_loggers
from cram_composer.train.prewarm import join, run_in_background
from cram_composer.train.session import Session
from cram_composer.train.trainer import LowOverheadTrainer

# Composer insists on a duration in its own units; the budget callback is what ends a run.
_NO_END = "1000000000ba"
_TEN_MINUTES = 600.0
_ONE_MINUTE = 60.0


def run(
    composed: Composed, device: DeviceChoice, folder: RunFolder, earlier: dict[str, Any] | None, started: float
) -> int:
    """Train to the end of the budget and finish; returns the process's exit status.

    `folder` is locked by this process group, `earlier` the record of an earlier start of the same run, and `started`
    the time.monotonic() at which this start began.
    """
    built = build(composed, device, folder, earlier)
    attempt = Attempt(built)
    built.ledger.outside["setup"] += time.monotonic() - started - built.data.build_seconds
    write_record(built, "running")
    if dist.get_global_rank() == 0:
        kernels = ", ".join(f"{name} {value}" for name, value in built.kernels().items())
        print(f"{built.folder.path}: {built.parameters:,} parameters on {device.name}; {kernels}", flush=True)
    energy = EnergyMeter(built.trainer.state.device)
    energy.start()
    attempt.start()
    try:
        built.trainer.fit()
    except BaseException as error:
        attempt.close("failed")
        lost = lost_rank(error)
        cause = lost or error
        first_line = str(cause).splitlines()[0] if str(cause) else ""
        write_record(
            built, "failed", first_line if isinstance(cause, CramError) else f"{type(cause).__name__}: {first_line}"
        )
        if lost is not None:
            raise lost from error
        raise
    status, reason = _outcome(built)
    attempt.close(status)
    built.signals.uninstall()
    built.energy = energy.stop()
    if status == "interrupted":
        write_record(built, status, reason)
        if dist.get_global_rank() == 0:
            print(f"{reason}: saved at step {int(built.trainer.state.timestamp.batch)}; the same command continues it")
        if built.remote is not None:
            built.remote.flush(_ONE_MINUTE)
        return 128 + built.clock.signal
    with built.ledger.outside_budget("final_checkpoint"):
        built.checkpoints.save(built.trainer.state)
    return finish(built, status, reason)


def build(composed: Composed, device: DeviceChoice, folder: RunFolder, earlier: dict[str, Any] | None) -> Session:
    """Everything up to the first step. Raises CramError for what the user can fix."""
    config: RunConfig = composed.config
    set_up_cpu(device.threads, trains_here=device.name == "cpu")
    world_size, rank = dist.get_world_size(), dist.get_global_rank()
    if world_size > 1 or config.scaleout.strategy not in ("auto", "ddp"):
        # One process by itself has nobody to talk to; Composer's calls of the group would each take a while.
        dist.initialize_dist(device.name, timeout=_TEN_MINUTES if device.name == "gpu" else 3600.0)
    ledger = Ledger()
    data = prepare(config.data, dist.get_local_rank() == 0, _long_timeout_barrier())
    for phase, seconds in (earlier or {}).get("ledger", {}).get("outside", {}).items():
        ledger.outside[phase] += seconds
    ledger.outside["data_build"] += data.build_seconds
    # The reading processes are forked from here, which the tokenizers library warns about; nothing tokenizes any more.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    check_row_length(config, data.manifest["sequence_length"])
    if rank == 0:
        folder.keep_tokenizer(data.tokenizer)
    budget = build_budget(config.budget, world_size)
    run_in_background(get_cpu_model)

    reproducibility.seed_all(config.seed)  # the same weights on every rank
    tokens = data.manifest["special_tokens"]
    network = build_model(config.model, data.manifest["vocab_size"], tokens, shift=config.objective.shift)
    strategy = build_strategy(config, device, world_size)
    precision, autocast_dtype = strategy.precision()
    compile_mode, changed = strategy.compile_mode()
    model = MaskedLMTrainingModel(network, autocast_dtype, compile_mode)
    if changed is not None:
        model.compile_state = f"{compile_mode} ({changed})"
    strategy.prepare_model(model)
    model.use_loss(config.model.loss_kernel, device.name)
    model.use_attention(config.model.attention_kernel, device.name, device.precision)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    optimizer = build_optimizer(config.optimizer, model)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]

    in_loop, final, cached = _held_out(config, data, rank, world_size)
    loader = _train_loader(config, data, rank, world_size, cached)
    length = data.manifest["sequence_length"]
    flops = flops_per_token(network, length, loader.collator.capacity(length))
    guard = NonFiniteGuard(
        config.train.on_nonfinite,
        config.train.max_nonfinite,
        rollback_to_checkpoint(folder, ledger, strategy),
        strategy.gradients,
        strategy.is_replicated,
        strategy.skips_steps,
    )
    parts = Parts(budget, loader, world_size, config.seed, lambda: guard.norm)
    # The guard is behind the others: Composer runs algorithms in reverse after a step, and clipping would make an
    # infinity finite.
    algorithms = [
        *([MaskingSchedule(config.objective, budget, loader)] if config.objective.final_mlm_probability else []),
        *build_algorithms(strategy.algorithms(), parts),
        guard,
        *strategy.pre_step_algorithms(),
    ]
    algorithms = [*optimizer_support(optimizer, model, budget), *algorithms]
    if config.data.curriculum:
        splits = [stream.split for stream in choose_streams(config.data, data.manifest)]
        algorithms.insert(0, DataCurriculum(Curriculum(config.data.curriculum, splits), budget, loader))

    heartbeat = Heartbeat(folder, ledger)
    signals = Signals(heartbeat.beat)
    remote = None
    if config.runs_remote is not None and rank == 0:
        remote = RunMirror(folder, config.runs_remote, config.checkpoint.keep)
    checkpoints = RollingCheckpoints(
        folder,
        budget,
        ledger,
        interval=_checkpoint_interval(config, budget),
        keep=config.checkpoint.keep,
        strategy=strategy,
        branch_points=BranchPoints(folder.path, config.checkpoint.branch_at),
        saved=remote.enqueue if remote is not None else None,
    )
    schedule = with_swa(build_schedule(config.schedule), config.algorithms.swa)
    clock = BudgetCallback(budget, ledger, schedule, lambda: signals.received, checkpoints.save)
    trace = TraceWriter(folder, budget, clock, ledger, loader)
    early_stop = (
        EarlyStop(config.train.early_stop, budget, lambda: trace.recent_losses) if config.train.early_stop else None
    )
    forecast = EpochForecast(budget, ledger, loader.stream.rows_per_epoch, data.manifest["sequence_length"])
    callbacks = [
        heartbeat,
        trace,
        forecast,
        *([early_stop] if early_stop else []),
        DataPosition(loader),
        checkpoints,
        clock,
    ]

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        saved = newest_checkpoint(folder.checkpoints)
    if len(set(dist.all_gather_object(saved.step if saved else None))) > 1:
        raise CramError(f"{folder.checkpoints}: ranks see different checkpoints; runs_dir must be on a shared disk")
    due = due_by_progress(config.eval.interval, budget)
    join()
    with strategy.trainer_context(), warnings.catch_warnings():
        # It is passed on purpose: Composer's own cannot count a wall-clock budget.
        warnings.filterwarnings("ignore", message="Specifying the ProgressBarLogger")
        trainer = LowOverheadTrainer(
            model=model,
            optimizers=optimizer,
            train_dataloader=training_data(loader),
            eval_dataloader=held_out_evaluator("eval", in_loop, config.eval.batch_size, due),
            algorithms=algorithms,
            callbacks=callbacks,
            loggers=build_loggers(config.logging, folder, budget),
            progress_bar=False,
            max_duration=_NO_END,
            device=device.name,
            precision=precision,
            device_train_microbatch_size=config.train.device_train_microbatch_size,
            seed=config.seed,
            run_name=folder.path.name,
            load_path=str(saved.path) if saved else None,
            load_progress_bar=False,
            spin_dataloaders=False,  # DataPosition goes to the place at once
            **strategy.trainer_arguments(),
        )
    strategy.after_init(trainer)
    strategy.on_step_skipped(guard.step_was_skipped)
    if saved is not None and trainer._rng_state is not None:
        # Composer restores these while it spins the dataloader, which this run does not do.
        reproducibility.load_rng_state(trainer._rng_state)
    restore_ledger(ledger, folder, saved)
    signals.install()
    return Session(
        config=config,
        composed=composed,
        folder=folder,
        device=device,
        data=data,
        budget=budget,
        ledger=ledger,
        loader=loader,
        model=model,
        strategy=strategy,
        trainer=trainer,
        clock=clock,
        trace=trace,
        heartbeat=heartbeat,
        checkpoints=checkpoints,
        remote=remote,
        guard=guard,
        early_stop=early_stop,
        signals=signals,
        final_batches=final,
        parameters=parameters,
        flops_per_token=flops,
        attempts=list((earlier or {}).get("attempts", [])),
        environment=environment(),
        branched_from=(earlier or {}).get("branched_from"),
    )


def _long_timeout_barrier() -> Callable[[], None]:
    """A barrier of all ranks for what takes hours: building a data set, where NCCL's gives up after ten minutes."""
    if dist.get_world_size() == 1:
        return lambda: None
    group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=2))
    return lambda: torch.distributed.barrier(group)


def _held_out(config: RunConfig, data: DataSet, rank: int, world_size: int) -> tuple[list[Batch], list[Batch], int]:
    """This rank's batches for the evaluations in the loop and at the end; the bytes their shards keep of a cache."""
    collator = evaluation_collator(**_token_ids(config, data), shift=config.objective.shift)
    settings = config.eval
    rows, cached = open_validation(data, max(settings.rows, settings.final_rows))
    final = evaluation_batches(rows[: settings.final_rows], collator, settings.batch_size, rank, world_size)
    if not final:
        raise CramError(
            f"{data.root}: {len(rows)} validation rows are less than one batch of eval.batch_size = "
            f"{settings.batch_size} on {world_size} device(s); lower it or build a larger validation split"
        )
    in_loop = evaluation_batches(rows[: settings.rows], collator, settings.batch_size, rank, world_size)
    if settings.interval > 0.0 and not in_loop:
        raise CramError(
            f"eval.rows: {settings.rows} are less than one batch of eval.batch_size = {settings.batch_size} on "
            f"{world_size} device(s); raise it, or set eval.interval=0"
        )
    return in_loop, final, cached


def _train_loader(config: RunConfig, data: DataSet, rank: int, world_size: int, cached: int) -> TrainLoader:
    words = config.objective.unit != "token"
    joins = word_joins(data.tokenizer, data.manifest["vocab_size"]) if words else None
    collator = build_collator(config.objective, **_token_ids(config, data), joins=joins)
    return TrainLoader(
        open_train(data, config.data, seed=config.seed, rank=rank, world_size=world_size, reserved=cached),
        collator,
        rows=config.train.batch_size // world_size,
        microbatch=config.train.device_train_microbatch_size,
        seq_length=data.manifest["sequence_length"],
        seed=config.seed,
        rank=rank,
    )


def _token_ids(config: RunConfig, data: DataSet) -> dict[str, Any]:
    """The ids that a collator has to know; those of padding and the ends of documents where either matters."""
    tokens = data.manifest["special_tokens"]
    return {
        "vocab_size": data.manifest["vocab_size"],
        "special_ids": tuple(tokens.values()),
        "mask_id": tokens["mask"],
        "pad_id": tokens["pad"] if data.manifest["packing"] == "best-fit" else None,
        "sep_id": tokens["sep"] if config.model.document_masking else None,
    }


def _checkpoint_interval(config: RunConfig, budget: Budget) -> float:
    """The configured interval, or ten minutes, or a tenth of a budget shorter than that."""
    if config.checkpoint.interval is not None:
        return parse_duration(config.checkpoint.interval)
    return min(_TEN_MINUTES, (budget.limits.seconds or math.inf) / 10.0)


def _outcome(built: Session) -> tuple[str, str | None]:
    if built.clock.signal:
        return "interrupted", signal.Signals(built.clock.signal).name
    if built.early_stop is not None and built.early_stop.reason is not None:
        return "stopped-early", built.early_stop.reason
    return "finished", None
