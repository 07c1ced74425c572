"""Duration of a step on one device, from given FLOP/s or a few timed steps of the run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import reproducibility
from transformers import PreTrainedModel

from cram_composer.algorithms.adaptive_masking import adaptive_masking
from cram_composer.algorithms.nonfinite_guard import NonFiniteGuard
from cram_composer.algorithms.optimizer_hooks import optimizer_hooks
from cram_composer.algorithms.registry import AlgorithmContext, build_algorithms
from cram_composer.budget.budget import Budget, Limits
from cram_composer.data.loading.data_spec import build_data_spec
from cram_composer.data.loading.stream import TrainLoader
from cram_composer.device import DeviceChoice, set_up_cpu
from cram_composer.models.flops import flops_per_token
from cram_composer.optim.factory import build_optimizer
from cram_composer.planning.run_spec import RunSpec
from cram_composer.train.trainer import LowOverheadTrainer

_WARM_UP = 2  # steps of each size; the first one compiles
_MICROBATCHES = (1, 3)  # of the two timed step sizes


@dataclass(frozen=True)
class Speed:
    """Seconds on one device, at the data's full row length."""

    microbatch_seconds: float  # forward and backward
    step_seconds: float  # everything besides microbatches: the optimizer, clipping, the trainer
    compile_seconds: float
    source: str  # description of its origin

    def step(self, microbatches: float, work: float = 1.0) -> float:
        """Return the seconds of a step; `work` is the cost of its microbatches relative to rows of full length."""
        return self.step_seconds + microbatches * work * self.microbatch_seconds


def speed_from_flops(spec: RunSpec, flops_per_row: float, flops: float, source: str) -> Speed:
    """Return the speed of a device with `flops` model FLOP/s, given the forward and backward FLOPs of a row."""
    return Speed(spec.config.train.microbatch * flops_per_row / flops, 0.0, 0.0, source)


def row_flops(spec: RunSpec, network: PreTrainedModel, length: int) -> float:
    """Return the FLOPs of forward and backward of a row of `length` tokens (models.flops)."""
    return length * flops_per_token(network, length, spec.mean_capacity(length))


def over_phases(spec: RunSpec, network: PreTrainedModel, speed: Speed) -> Speed:
    """Return the mean speed over the phases of the objective from that of its most expensive one, by their FLOPs."""
    length = spec.facts.sequence_length
    most = length * flops_per_token(network, length, spec.largest_collator().capacity(length))
    return replace(speed, microbatch_seconds=speed.microbatch_seconds * row_flops(spec, network, length) / most)


def measure_speed(
    spec: RunSpec, device: DeviceChoice, steps: int, after_first_step: Callable[[], None] = lambda: None
) -> Speed:
    """Time `steps` steps of each of two sizes on random rows through Composer's trainer, without writing anything.

    A step of k microbatches takes a + k b seconds, so steps of one and of three microbatches determine a and b. The
    run's algorithms are active, except those that change the step over the budget. Compilation time is the excess of
    the warm-up over as many later steps. Nothing is read from disk or sent to another device.
    """
    config = spec.config
    set_up_cpu(device.threads, trains_here=device.name == "cpu")
    reproducibility.seed_all(config.seed)
    model = spec.build_model(device.autocast_dtype, device.compile)
    model.use_kernels(config.model, device.name, device.precision)
    optimizer = build_optimizer(config.optimizer, model, config.model.mup_base_width)
    microbatch = config.train.microbatch
    loader = spec.build_loader(microbatch, pin_memory=device.name == "gpu")
    budget = Budget(Limits(steps=1))
    steady = config.algorithms.model_copy(update={"batch_size_ramp": None, "seq_length_warmup": None})
    guard = NonFiniteGuard("skip-step", len(_MICROBATCHES) * (_WARM_UP + steps), lambda state, logger: False)
    context = AlgorithmContext(budget, loader, 1, config.seed, lambda: guard.norm)
    sizes = [count for count in _MICROBATCHES for _ in range(_WARM_UP)]
    sizes += [count for _ in range(steps) for count in _MICROBATCHES]
    timed = _StepTimer(loader, sizes, after_first_step)
    trainer = LowOverheadTrainer(
        model=model,
        optimizers=optimizer,
        train_dataloader=build_data_spec(loader),
        algorithms=[
            *optimizer_hooks(optimizer, model, budget),
            *adaptive_masking(config.objective, loader, model),
            *build_algorithms(steady, context),
            guard,
        ],
        callbacks=[timed],
        progress_bar=False,
        max_duration=f"{len(sizes)}ba",
        device=device.composer_device,
        precision=device.composer_precision,
        device_train_microbatch_size=microbatch,
        seed=config.seed,
        spin_dataloaders=False,
    )
    try:
        trainer.fit()
    finally:
        trainer.close()
    warm, steady_seconds = timed.seconds[: 2 * _WARM_UP], timed.seconds[2 * _WARM_UP :]
    one, three = (statistics.median(steady_seconds[i::2]) for i in range(2))
    few, many = _MICROBATCHES
    # Noise can make the difference negative.
    overhead = max(0.0, (many * one - few * three) / (many - few))
    return Speed(
        microbatch_seconds=(three - overhead) / many,
        step_seconds=overhead,
        compile_seconds=max(0.0, sum(warm) - _WARM_UP * (one + three)),
        source=f"{2 * steps} timed steps on this machine's {device.name}, {device.threads} threads",
    )


class _StepTimer(Callback):
    """Time step s with `sizes[s]` microbatches, until the device has finished, into `seconds`."""

    def __init__(self, loader: TrainLoader, sizes: list[int], after_first_step: Callable[[], None]) -> None:
        self._loader = loader
        self._sizes = sizes
        self._after_first_step = after_first_step
        self._since = 0.0
        self.seconds: list[float] = []

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """Set the size of the step and start its timer."""
        self._loader.rows = self._loader.microbatch * self._sizes[int(state.timestamp.batch)]
        self._since = time.perf_counter()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Stop the timer once the loss, which is read here, is available."""
        float((state.total_loss_dict or {})["loss/train/total"])
        self.seconds.append(time.perf_counter() - self._since)
        if len(self.seconds) == 1:
            self._after_first_step()
