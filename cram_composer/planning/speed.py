"""How long a step takes on one device: from given FLOP/s, or from a few real steps of the run timed here."""

from __future__ import annotations

import dataclasses
import statistics
import time
from dataclasses import dataclass

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import reproducibility
from transformers import PreTrainedModel

from cram_composer.algorithms.nonfinite_guard import NonFiniteGuard
from cram_composer.algorithms.optimizer_hooks import optimizer_hooks
from cram_composer.algorithms.registry import AlgorithmContext, build_algorithms
from cram_composer.budget.budget import Budget, Limits
from cram_composer.data.loading.data_spec import training_data
from cram_composer.data.loading.stream import TrainLoader
from cram_composer.device import DeviceChoice, set_up_cpu
from cram_composer.models.flops import flops_per_token
from cram_composer.optim.factory import build_optimizer
from cram_composer.planning.model_spec import ModelSpec
from cram_composer.train.trainer import LowOverheadTrainer

_WARM_UP = 2  # steps of each size, in the first of which its graphs are compiled
_MICROBATCHES = (1, 3)  # of the two sizes of step that are timed


@dataclass(frozen=True)
class Speed:
    """Seconds on one device, at the data's full row length."""

    microbatch_seconds: float  # forward and backward
    step_seconds: float  # what a step takes besides its microbatches: the optimizer, clipping, the trainer
    compile_seconds: float
    source: str  # in words

    def step(self, microbatches: int, work: float = 1.0) -> float:
        """Seconds of a step whose microbatches are `work` times that of rows of full length."""
        return self.step_seconds + microbatches * work * self.microbatch_seconds


def given_speed(spec: ModelSpec, flops_per_row: float, flops: float, source: str) -> Speed:
    """The speed of `flops` model FLOP/s per device, `flops_per_row` being those of a row, forward and backward."""
    return Speed(spec.config.train.device_train_microbatch_size * flops_per_row / flops, 0.0, 0.0, source)


def row_flops(spec: ModelSpec, network: PreTrainedModel, length: int) -> float:
    """FLOPs of forward and backward of a row of `length` tokens (models.flops)."""
    return length * flops_per_token(network, length, spec.collator.capacity(length))


def calibrate(spec: ModelSpec, device: DeviceChoice, steps: int) -> Speed:
    """Train `steps` steps of each of two sizes on random rows through Composer's trainer, and write nothing.

    A step of k microbatches takes a + k b seconds: from one and from three microbatches follow a and b. The run's own
    algorithms take part, except those that change what a step is made of over the budget. Compilation is what the
    warm-up takes more than as many steps after it. Nothing is read from disk, nor sent to another device.
    """
    config = spec.config
    set_up_cpu(device.threads, trains_here=device.name == "cpu")
    reproducibility.seed_all(config.seed)
    model = spec.model(device.autocast_dtype, device.compile)
    model.use_loss(config.model.loss_kernel, device.name)
    model.use_attention(config.model.attention_kernel, device.name, device.precision)
    optimizer = build_optimizer(config.optimizer, model)
    microbatch = config.train.device_train_microbatch_size
    loader = spec.loader(microbatch)
    budget = Budget(Limits(steps=1))
    steady = dataclasses.replace(config.algorithms, batch_size_ramp=None, seq_length_warmup=None)
    guard = NonFiniteGuard("skip-step", len(_MICROBATCHES) * (_WARM_UP + steps), lambda state, logger: False)
    context = AlgorithmContext(budget, loader, 1, config.seed, lambda: guard.norm)
    sizes = [count for count in _MICROBATCHES for _ in range(_WARM_UP)]
    sizes += [count for _ in range(steps) for count in _MICROBATCHES]
    timed = _TimedSteps(loader, sizes)
    trainer = LowOverheadTrainer(
        model=model,
        optimizers=optimizer,
        train_dataloader=training_data(loader),
        algorithms=[*optimizer_hooks(optimizer, model, budget), *build_algorithms(steady, context), guard],
        callbacks=[timed],
        progress_bar=False,
        max_duration=f"{len(sizes)}ba",
        device=device.name,
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
    # A difference that noise has made negative is none.
    overhead = max(0.0, (many * one - few * three) / (many - few))
    return Speed(
        microbatch_seconds=(three - overhead) / many,
        step_seconds=overhead,
        compile_seconds=max(0.0, sum(warm) - _WARM_UP * (one + three)),
        source=f"{2 * steps} timed steps on {device.name} here, {device.threads} threads",
    )


class _TimedSteps(Callback):
    """Step s is of `sizes[s]` microbatches; its seconds, until the device has done it, go into `seconds`."""

    def __init__(self, loader: TrainLoader, sizes: list[int]) -> None:
        self._loader = loader
        self._sizes = sizes
        self._since = 0.0
        self.seconds: list[float] = []

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """A step begins."""
        self._loader.rows = self._loader.microbatch * self._sizes[int(state.timestamp.batch)]
        self._since = time.perf_counter()

    def batch_end(self, state: State, logger: Logger) -> None:
        """It is over, on the device too: its loss is read."""
        float((state.total_loss_dict or {})["loss/train/total"])
        self.seconds.append(time.perf_counter() - self._since)
